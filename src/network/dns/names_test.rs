// SPDX-License-Identifier: Apache-2.0

use super::*;

#[test]
fn reversed_names_are_addresses() {
    assert_eq!(reversed("4.3.2.1.in-addr.arpa"), Some("1.2.3.4".parse().unwrap()));
    let six = format!("1.{}d.f.ip6.arpa", "0.".repeat(29));
    assert_eq!(reversed(&six), Some("fd00::1".parse().unwrap()));
    for name in [
        "3.2.1.in-addr.arpa",
        "5.4.3.2.1.in-addr.arpa",
        "256.3.2.1.in-addr.arpa",
        "x.ip6.arpa",
        "web",
        "1.ip6.arpa",
        "",
    ] {
        assert_eq!(reversed(name), None, "{name}");
    }
    assert_eq!(reversed(&format!("10.{}d.f.ip6.arpa", "0.".repeat(29))), None);
}
