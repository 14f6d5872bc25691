//! `hearth token`: tokens for a daemon with a token secret, signed here. Needs no daemon.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use hearth_model::ErrorKind;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::context::Context;
use crate::error::CliError;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a token: a JWT signed with the daemon's secret (HS256)
    Create(Create),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// File with the daemon's secret (its `auth.token_secret_file`) [default: the variable
    /// HEARTH_AUTH_TOKEN_SECRET_FILE or HEARTH_AUTH_TOKEN_SECRET]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// For whom it is; shown in the daemon's log
    #[arg(long, default_value = "hearth-cli")]
    subject: String,
    /// How long it is valid, as in 12h or 30d
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = crate::duration::parse)]
    ttl: Duration,
}

#[derive(serde::Serialize)]
struct Created {
    token: String,
    subject: String,
    expires_at: jiff::Timestamp,
}

pub(crate) fn token(context: &Context, Command::Create(arguments): Command) -> Result<(), CliError> {
    let secret = secret(arguments.secret_file)?;
    let now = jiff::Timestamp::now();
    let too_long = || CliError::new(ErrorKind::Invalid, "a token cannot be valid that long");
    let expires_at = jiff::SignedDuration::try_from(arguments.ttl)
        .ok()
        .and_then(|ttl| now.checked_add(ttl).ok())
        .ok_or_else(too_long)?;
    let token = sign(&secret, &arguments.subject, now.as_second(), expires_at.as_second());
    let created = Created { token, subject: arguments.subject, expires_at };
    context.output.result(&created, |created| format!("{}\n", created.token))
}

/// Without the line's end, as the daemon reads it.
fn secret(file: Option<PathBuf>) -> Result<Vec<u8>, CliError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let file = file.or_else(|| variable("HEARTH_AUTH_TOKEN_SECRET_FILE").map(PathBuf::from));
    let secret = match file {
        Some(path) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| CliError::host(format!("read the secret in {}", path.display()), &error))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => {
            let secret = std::env::var("HEARTH_AUTH_TOKEN_SECRET").unwrap_or_default();
            if secret.is_empty() {
                return Err(CliError::new(
                    ErrorKind::Invalid,
                    "a token is signed with the daemon's secret, and none is given",
                )
                .hint("name its file with --secret-file"));
            }
            secret
        }
    };
    if secret.is_empty() {
        return Err(CliError::new(ErrorKind::Invalid, "the secret is empty"));
    }
    Ok(secret.into_bytes())
}

fn sign(secret: &[u8], subject: &str, issued_s: i64, expires_s: i64) -> String {
    let claims = serde_json::json!({ "sub": subject, "iat": issued_s, "exp": expires_s });
    let signed = format!("{}.{}", BASE64.encode(r#"{"alg":"HS256","typ":"JWT"}"#), BASE64.encode(claims.to_string()));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", BASE64.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checked with another implementation (Python's hmac and base64).
    #[test]
    fn a_token_is_signed_as_everybody_signs() {
        let token = sign(b"your-256-bit-secret", "me", 1_516_239_022, 1_516_242_622);
        let expected = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.\
                        eyJleHAiOjE1MTYyNDI2MjIsImlhdCI6MTUxNjIzOTAyMiwic3ViIjoibWUifQ.\
                        _pOd_Dlpo1x1h3mmn9SSlJRc_YUDERZU8v0I3MRE0o8";
        assert_eq!(token, expected);
    }
}
