//! Identifiers: 24 characters, a lower-case letter and then lower-case letters and digits, the
//! shape of the CUID2s that Hypeman hands out.

use std::fmt;
use std::str::FromStr;

const LEN: usize = 24;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: 24 lower-case letters and digits, a letter first")]
pub struct IdError(String);

fn spell(entropy: [u8; 16]) -> String {
    let mut number = u128::from_le_bytes(entropy);
    let mut digit = |base: u8| {
        let d = u8::try_from(number % u128::from(base)).expect("less than the base");
        number /= u128::from(base);
        d
    };
    (0..LEN)
        .map(|at| match digit(if at == 0 { 26 } else { 36 }) {
            d @ 0..26 => char::from(b'a' + d),
            d => char::from(b'0' + d - 26),
        })
        .collect()
}

fn check(text: &str) -> Result<(), IdError> {
    let ok = text.len() == LEN
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if ok { Ok(()) } else { Err(IdError(text.to_owned())) }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Spells 128 random bits.
            #[must_use]
            pub fn from_entropy(entropy: [u8; 16]) -> Self {
                Self(spell(entropy))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                check(&text).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id! {
    /// Names one instance for ever.
    InstanceId
}
id! {
    /// Names one snapshot for ever.
    SnapshotId
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_we_spell_we_read(entropy: [u8; 16]) {
            let id = InstanceId::from_entropy(entropy);
            prop_assert_eq!(id.as_str().parse::<InstanceId>(), Ok(id.clone()));
        }
    }

    #[test]
    fn an_id_is_never_a_path() {
        for bad in ["", "..", "a/b", "ABCDEFGHIJKLMNOPQRSTUVWX", "1bcdefghijklmnopqrstuvwx", "abc"] {
            assert!(bad.parse::<SnapshotId>().is_err(), "{bad}");
        }
    }
}
