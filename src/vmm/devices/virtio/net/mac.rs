// SPDX-License-Identifier: Apache-2.0
//! Ethernet addresses of guests.

use std::fmt;
use std::str::FromStr;

/// The address of one network card, never a group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// Why a MAC address is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six pairs of hexadecimal digits.
    #[error("MAC address {0:?} is not of the form 02:00:00:00:00:01")]
    Form(String),
    /// A group address (first byte odd) or all zeroes.
    #[error("MAC address {0} is a multicast or empty address: the first byte must be even, and one byte not 0")]
    NotUnicast(String),
}

impl MacAddress {
    /// `bytes`, where they are the address of one card.
    ///
    /// # Errors
    /// [`MacError::NotUnicast`].
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        let address = Self(bytes);
        let multicast = bytes.first().is_some_and(|first| first & 1 != 0);
        if multicast || bytes == [0; 6] { Err(MacError::NotUnicast(address.to_string())) } else { Ok(address) }
    }

    /// An address for the guest behind the TAP `name`: locally administered, the same in each run.
    ///
    /// Two hosts on one bridge that use the same TAP names must set addresses of their own.
    pub fn of_tap(name: &str) -> Self {
        // FNV-1a: stable by definition, which the standard library's hashes are not.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        let [a, b, c, d, e, ..] = hash.to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }

    /// The six bytes in transmission order.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let form = || MacError::Form(text.to_owned());
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|pair| pair.len() == 2).ok_or_else(form)?;
            // `from_str_radix` would take a sign.
            if !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(form());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| form())?;
        }
        if pairs.next().is_some() {
            return Err(form());
        }
        Self::new(bytes)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        for text in ["02:00:00:00:00:01", "fe:ff:ff:ff:ff:ff", "52:54:00:ab:cd:ef"] {
            assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text);
        }
        assert_eq!("AA:BB:CC:DD:EE:FF".parse::<MacAddress>().unwrap().to_string(), "aa:bb:cc:dd:ee:ff");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "02", "02:00:00:00:00", "02:00:00:00:00:00:01", "02-00-00-00-00-01", "+2:00:00:00:00:01", "2::1"]
        {
            assert_eq!(text.parse::<MacAddress>(), Err(MacError::Form(text.to_owned())));
        }
        for text in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacError::NotUnicast(text.to_owned())));
        }
    }

    #[test]
    fn the_default_is_local_and_stable() {
        let address = MacAddress::of_tap("tap0");
        assert_eq!(address.to_string(), MacAddress::of_tap("tap0").to_string());
        assert_ne!(address, MacAddress::of_tap("tap1"));
        assert_eq!(address.bytes()[0] & 3, 2, "locally administered, unicast");
    }
}
