//! Who may use the API: bearer tokens as Hypeman issues them, JWTs signed with HS256.
//!
//! In: the `Authorization` header and the time. Out: who asks, or why not. Without a secret
//! everybody may, and a token that is sent is not looked at. Tokens are checked here, not issued.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;

use crate::config::Secret;

/// Checks tokens.
#[derive(Clone)]
pub(crate) struct Auth {
    key: Option<Hmac<Sha256>>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("required", &self.key.is_some()).finish()
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Somebody on this host; nobody was asked for a token.
    Anyone,
    /// The token's subject.
    Subject(String),
}

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("a token is required")]
    Missing,
    #[error("the Authorization header is not \"Bearer <token>\"")]
    NotBearer,
    #[error("the token is not a JWT signed with HS256")]
    Malformed,
    #[error("the token is not signed with this server's secret")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token is for a registry, not for this API")]
    ForRegistry,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: Option<String>,
    #[serde(default)]
    exp: Option<f64>,
    #[serde(default)]
    nbf: Option<f64>,
    // What Hypeman's registry tokens carry and its users' tokens do not.
    #[serde(default)]
    repos: Option<serde_json::Value>,
    #[serde(default)]
    scope: Option<serde_json::Value>,
    #[serde(default)]
    build_id: Option<serde_json::Value>,
}

impl Auth {
    pub(crate) fn new(secret: Option<&Secret>) -> Self {
        let key = secret
            .map(|secret| Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length"));
        Self { key }
    }

    /// Whether a token is asked for.
    pub(crate) fn is_required(&self) -> bool {
        self.key.is_some()
    }

    /// Decides on a request's `Authorization` header; `now_s` is seconds since 1970.
    pub(crate) fn check(&self, header: Option<&[u8]>, now_s: i64) -> Result<Caller, Refused> {
        let Some(key) = &self.key else {
            return Ok(Caller::Anyone);
        };
        let header = std::str::from_utf8(header.ok_or(Refused::Missing)?).map_err(|_| Refused::NotBearer)?;
        let (scheme, token) = header.split_once(' ').ok_or(Refused::NotBearer)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Refused::NotBearer);
        }
        let claims = verify(key, token.trim())?;
        // No clock here is better than a second; the comparison needs no more.
        #[allow(clippy::cast_precision_loss)]
        let now = now_s as f64;
        if claims.exp.is_some_and(|exp| now >= exp) {
            return Err(Refused::Expired);
        }
        if claims.nbf.is_some_and(|nbf| now < nbf) {
            return Err(Refused::NotYet);
        }
        if claims.repos.is_some() || claims.scope.is_some() || claims.build_id.is_some() {
            return Err(Refused::ForRegistry);
        }
        Ok(Caller::Subject(claims.sub.unwrap_or_default()))
    }
}

/// The claims of a token, once its signature is known to be ours.
fn verify(key: &Hmac<Sha256>, token: &str) -> Result<Claims, Refused> {
    let (signed, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(Refused::Malformed)?;
    let decode = |part: &str| BASE64.decode(part).map_err(|_| Refused::Malformed);
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Refused::Malformed)?;
    // "none" and asymmetric algorithms are how JWT checks have been fooled.
    if header.alg != "HS256" {
        return Err(Refused::Malformed);
    }
    let mut mac = key.clone();
    mac.update(signed.as_bytes());
    mac.verify_slice(&decode(signature)?).map_err(|_| Refused::Signature)?;
    serde_json::from_slice(&decode(claims)?).map_err(|_| Refused::Malformed)
}

/// A token as Hypeman would issue it.
#[cfg(test)]
pub(crate) fn sign(secret: &str, header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", BASE64.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
    const NOW: i64 = 1_800_000_000;

    fn check(header: &str) -> Result<Caller, Refused> {
        Auth::new(Some(&Secret::new("your-256-bit-secret"))).check(Some(header.as_bytes()), NOW)
    }

    fn signed(claims: &str) -> Result<Caller, Refused> {
        check(&format!("Bearer {}", sign("your-256-bit-secret", HS256, claims)))
    }

    /// The example of RFC 7519's best-known web page, made by somebody else.
    #[test]
    fn a_token_made_elsewhere_is_taken() {
        let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.\
                     eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.\
                     SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c";
        assert_eq!(check(&format!("Bearer {token}")), Ok(Caller::Subject("1234567890".into())));
        assert_eq!(check(&format!("bearer {token}")), Ok(Caller::Subject("1234567890".into())));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let other = format!("Bearer {}", sign("another", HS256, r#"{"sub":"me"}"#));
        assert_eq!(check(&other), Err(Refused::Signature));
        let none = format!("Bearer {}.{}.", BASE64.encode(r#"{"alg":"none"}"#), BASE64.encode("{}"));
        assert_eq!(check(&none), Err(Refused::Malformed));
        let hs512 = sign("your-256-bit-secret", r#"{"alg":"HS512"}"#, "{}");
        assert_eq!(check(&format!("Bearer {hs512}")), Err(Refused::Malformed));
        for (header, refused) in [
            ("Bearer", Refused::NotBearer),
            ("Basic abc", Refused::NotBearer),
            ("Bearer abc", Refused::Malformed),
            ("Bearer a.b.c", Refused::Malformed),
        ] {
            assert_eq!(check(header), Err(refused), "{header}");
        }
    }

    #[test]
    fn claims_are_looked_at() {
        assert_eq!(signed(&format!(r#"{{"exp":{}}}"#, NOW + 1)), Ok(Caller::Subject(String::new())));
        assert_eq!(signed(&format!(r#"{{"exp":{NOW}}}"#)), Err(Refused::Expired));
        assert_eq!(signed(&format!(r#"{{"nbf":{}}}"#, NOW + 1)), Err(Refused::NotYet));
        assert_eq!(signed(r#"{"sub":"b","repos":["x"]}"#), Err(Refused::ForRegistry));
    }

    #[test]
    fn without_a_secret_everybody_may_and_tokens_are_not_looked_at() {
        let open = Auth::new(None);
        assert_eq!(open.check(None, NOW), Ok(Caller::Anyone));
        assert_eq!(open.check(Some(b"Bearer whatever"), NOW), Ok(Caller::Anyone));
        assert_eq!(Auth::new(Some(&Secret::new("s"))).check(None, NOW), Err(Refused::Missing));
    }
}
