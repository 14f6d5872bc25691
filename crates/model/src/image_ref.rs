//! Image references, in one canonical spelling.

use std::fmt;
use std::str::FromStr;

/// `registry/path:tag` or `registry/path@sha256:…`, normalised as Docker does it: `alpine` is
/// `docker.io/library/alpine:latest`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef(String);

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image reference {text:?} {problem}")]
pub struct ImageRefError {
    text: String,
    problem: &'static str,
}

impl ImageRef {
    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        let fail = |problem| ImageRefError { text: text.to_owned(), problem };
        if text.is_empty() || text.len() > 512 {
            return Err(fail("must have 1 to 512 characters"));
        }
        let (path, digest) = match text.split_once('@') {
            Some((path, digest)) => (path, Some(digest)),
            None => (text, None),
        };
        if let Some(digest) = digest {
            let hex = digest.strip_prefix("sha256:").ok_or_else(|| fail("has a digest that is not sha256"))?;
            if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(fail("has a digest that is not 64 hexadecimal digits"));
            }
        }
        // A colon after the last slash starts the tag; one before it is a registry's port.
        let slash = path.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match path[slash..].find(':') {
            Some(colon) => (&path[..slash + colon], Some(&path[slash + colon + 1..])),
            None => (path, None),
        };
        if let Some(tag) = tag {
            let ok = (1..=128).contains(&tag.len())
                && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
                && !tag.starts_with(['.', '-']);
            if !ok {
                return Err(fail("has a tag with characters other than letters, digits, '_', '.' and '-'"));
            }
        }
        let (registry, rest) = match path.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => ("docker.io", path),
        };
        let name_ok = !rest.is_empty()
            && rest.split('/').all(|part| {
                !part.is_empty()
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-'))
                    && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            });
        if !name_ok {
            return Err(fail("must be lower-case path components of letters, digits, '_', '.' and '-'"));
        }
        if !registry.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !registry.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'-'))
        {
            return Err(fail("has a registry that is not a host name"));
        }
        let library = if registry == "docker.io" && !rest.contains('/') { "library/" } else { "" };
        Ok(Self(match (digest, tag) {
            (Some(digest), _) => format!("{registry}/{library}{rest}@{digest}"),
            (None, tag) => format!("{registry}/{library}{rest}:{}", tag.unwrap_or("latest")),
        }))
    }
}

impl TryFrom<String> for ImageRef {
    type Error = ImageRefError;
    fn try_from(text: String) -> Result<Self, ImageRefError> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.0
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_one_spelling() {
        let digest = "a".repeat(64);
        for (text, canonical) in [
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            ("alpine:3.20", "docker.io/library/alpine:3.20".to_owned()),
            ("me/app", "docker.io/me/app:latest".to_owned()),
            ("docker.io/library/alpine:latest", "docker.io/library/alpine:latest".to_owned()),
            ("localhost:5000/a/b:t", "localhost:5000/a/b:t".to_owned()),
            (&format!("ghcr.io/a/b:t@sha256:{digest}"), format!("ghcr.io/a/b@sha256:{digest}")),
        ] {
            let image: ImageRef = text.parse().expect(text);
            assert_eq!(image.as_str(), canonical);
            assert_eq!(image.as_str().parse::<ImageRef>(), Ok(image.clone()), "canonical text is stable");
        }
    }

    #[test]
    fn bad_references_say_why() {
        for bad in ["", "A", "a//b", "../x", "a:", "a:b:c", "a@md5:00", "a@sha256:12", "a b", "/a"] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
    }
}
