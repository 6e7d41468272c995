// SPDX-License-Identifier: Apache-2.0
use proptest::prelude::*;

use super::*;

const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn full(text: &str) -> Result<String, ReferenceError> {
    Reference::parse(text, DOCKER.name).map(|reference| reference.to_string())
}

#[test]
fn names_are_completed_as_docker_does() {
    let hub = DOCKER.name;
    for (text, expected) in [
        ("nginx", format!("{hub}/library/nginx:latest")),
        ("nginx:1.27", format!("{hub}/library/nginx:1.27")),
        ("team/app", format!("{hub}/team/app:latest")),
        ("localhost/app", "localhost/app:latest".to_owned()),
        ("localhost:5000/app:v1", "localhost:5000/app:v1".to_owned()),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest".to_owned()),
        ("[::1]:5000/app", "[::1]:5000/app:latest".to_owned()),
        ("Host/app", "Host/app:latest".to_owned()),
        ("example.org/app", "example.org/app:latest".to_owned()),
        (&format!("app@{DIGEST}"), format!("{hub}/library/app@{DIGEST}")),
        (&format!("example.org/app:v1@{DIGEST}"), format!("example.org/app:v1@{DIGEST}")),
        (&format!("{}/app", DOCKER.old_name), format!("{hub}/library/app:latest")),
        ("a.b__c---d/e_f", format!("{hub}/a.b__c---d/e_f:latest")),
    ] {
        // `a.b__c---d` has a dot, so it would be a registry, were `__` allowed in one.
        if text.starts_with("a.b") {
            assert!(matches!(full(text), Err(ReferenceError::Registry(_))));
            continue;
        }
        assert_eq!(full(text), Ok(expected), "{text}");
    }
}

#[test]
fn another_default_registry_has_no_namespace() {
    let reference = Reference::parse("nginx", "127.0.0.1:5000").unwrap();
    assert_eq!(reference.to_string(), "127.0.0.1:5000/nginx:latest");
    assert_eq!(reference.name().familiar_to("127.0.0.1:5000"), "nginx");
    assert_eq!(Reference::parse("nginx", "not a host"), Err(ReferenceError::Registry("not a host".into())));
}

#[test]
fn short_names_leave_out_what_is_understood() {
    let short = |text| Reference::parse(text, DOCKER.name).unwrap().name().familiar_to(DOCKER.name);
    assert_eq!(short("nginx"), "nginx");
    assert_eq!(short("team/app"), "team/app");
    assert_eq!(short("example.org/app"), "example.org/app");
    assert_eq!(short(&format!("{}/library/team/app", DOCKER.name)), "library/team/app");
}

#[test]
fn what_is_wrong_is_named() {
    use ReferenceError as E;
    assert_eq!(full(""), Err(E::Empty));
    assert_eq!(full(":tag"), Err(E::Empty));
    assert_eq!(full("example.org/"), Err(E::Empty));
    assert_eq!(full("team/App"), Err(E::UpperCase));
    assert_eq!(full("app:-v"), Err(E::Tag("-v".into())));
    assert_eq!(full("app:"), Err(E::Tag(String::new())));
    assert_eq!(full(&format!("app:{}", "v".repeat(129))), Err(E::Tag("v".repeat(129))));
    assert_eq!(full(&"a".repeat(64)), Err(E::LooksLikeId));
    assert_eq!(full(&"z".repeat(300)), Err(E::TooLong));
    assert!(matches!(full("app@sha256:12"), Err(E::Digest(_))));
    for text in
        ["/app", "a//b", "a/", "../etc", "a/../b", "-a", "a-", "a..b", "a___b", "a b", "ä", "a/b?x=1", "a%2fb", "a\nb"]
    {
        assert!(matches!(full(text), Err(E::Repository(_) | E::Registry(_))), "{text}: {:?}", full(text));
    }
    for text in
        ["host:port/a", "host:/a", "host:70000/a", "-h.org/a", "h..org/a", "[::g]/a", "user@host.org/a", "host:+1/a"]
    {
        assert!(full(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        registry in "[a-z][a-z0-9]{0,8}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?",
        path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,3}",
        tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        digest in proptest::option::of(Just(DIGEST)),
    ) {
        let text = format!(
            "{registry}/{path}{}{}",
            tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default(),
            digest.map(|digest| format!("@{digest}")).unwrap_or_default(),
        );
        let reference = Reference::parse(&text, DOCKER.name).unwrap();
        prop_assert_eq!(reference.registry(), &registry);
        prop_assert_eq!(reference.repository(), &path);
        prop_assert_eq!(Reference::parse(&reference.to_string(), "other.org"), Ok(reference));
    }

    #[test]
    fn nothing_read_can_leave_its_place_in_a_url(text in "[a-zA-Z0-9_./:@%?# -]{0,40}") {
        if let Ok(reference) = Reference::parse(&text, DOCKER.name) {
            let url = format!("https://{}/v2/{}/", reference.registry(), reference.repository());
            prop_assert!(!reference.repository().contains(".."));
            prop_assert!(!url.contains(['%', '?', '#', ' ', '@']));
        }
    }

    #[test]
    fn any_text_is_survived(text in ".*") {
        let _ = Reference::parse(&text, DOCKER.name);
    }
}
