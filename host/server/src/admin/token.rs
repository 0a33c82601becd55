//! The secret that whoever comes to the admin address from elsewhere must know.
//!
//! Only its digest is kept, and digests are compared in a time that does not depend on where they
//! differ, so neither memory, logs nor answering times give it away.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::settling::read_at_most;

/// Shorter ones can be guessed.
const BYTES_MIN: usize = 16;
/// Nobody types more; a file that holds more is another one.
const BYTES_MAX: usize = 4096;

/// A secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    digest: [u8; 32],
}

impl Token {
    /// Reads it from a file, without the space around it.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(file: &Path) -> Result<Self, String> {
        refuse_if_others_read(file)?;
        let text = read_at_most(file, BYTES_MAX as u64)
            .map_err(|error| format!("cannot be read: {error}"))?;
        let text = text.trim_ascii();
        if text.len() < BYTES_MIN || text.len() > BYTES_MAX {
            return Err(format!(
                "holds {} bytes; write {BYTES_MIN} to {BYTES_MAX}, such as those of `openssl rand \
                 -hex 32`",
                text.len()
            ));
        }
        if !text.iter().all(u8::is_ascii_graphic) {
            return Err("holds what cannot be sent; write letters and digits".to_owned());
        }
        Ok(Self::of(text))
    }

    fn of(text: &[u8]) -> Self {
        Self { digest: Sha256::digest(text).into() }
    }

    /// Whether this is it.
    pub fn is(&self, presented: &[u8]) -> bool {
        Self::of(presented).digest.ct_eq(&self.digest).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// Refuses a secret that everybody on this machine knows.
///
/// # Errors
/// What to do about it.
pub(crate) fn refuse_if_others_read(file: &Path) -> Result<(), String> {
    let found = fs::metadata(file).map_err(|error| format!("cannot be read: {error}"))?;
    let mode = found.permissions().mode();
    if mode & 0o007 != 0 {
        let shown = file.display();
        return Err(format!(
            "can be read by everybody (mode {:o}); chmod 600 {shown}",
            mode & 0o777
        ));
    }
    Ok(())
}

/// Lets those pass who know the token.
pub(super) async fn require(
    State(token): State<Arc<Token>>,
    request: Request,
    next: Next,
) -> Response {
    let presented = request.headers().get(header::AUTHORIZATION);
    let presented = presented.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if presented.is_some_and(|presented| token.is(presented.trim_ascii())) {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    let remedy = match presented {
        Some(_) => "this is not the token; send what token_file holds\n",
        None => "send the token: Authorization: Bearer TOKEN\n",
    };
    (StatusCode::UNAUTHORIZED, challenge, remedy).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        fs::write(&file, text).expect("the file");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("its mode");
        (folder, file)
    }

    #[test]
    fn a_token_is_known_by_itself_alone_and_shows_nothing() {
        let (_folder, file) = file("0123456789abcdef\n", 0o640);
        let token = Token::read(&file).expect("a token");
        assert!(token.is(b"0123456789abcdef"));
        for wrong in [&b""[..], b"0123456789abcde", b"0123456789abcdef0", b"0123456789abcdeF"] {
            assert!(!token.is(wrong));
        }
        assert_eq!(format!("{token:?}"), "Token(secret)");
    }

    #[test]
    fn a_token_that_is_none_is_refused_without_being_told() {
        for (text, mode, expected) in [
            ("short", 0o600, "holds 5 bytes; write 16"),
            ("with a space in the middle", 0o600, "holds what cannot be sent"),
            ("0123456789abcdef", 0o644, "can be read by everybody (mode 644)"),
        ] {
            let (_folder, file) = file(text, mode);
            let told = Token::read(&file).expect_err(text);
            assert!(told.contains(expected), "{told}");
            assert!(!told.contains(text), "{told}");
        }
    }
}
