//! The bearer token for callers over TCP, and the files that hand it to those who have the mount.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use llmwarden_proto::names;
use rand::Rng;
use secrecy::{ExposeSecret, SecretString};

use crate::compare::same;
use crate::files::{Error, at, replace};

const BYTES: usize = 32;

/// The token, 256 random bits in hexadecimal.
#[derive(Debug)]
pub struct Token(SecretString);

impl Token {
    /// The token of the last run if its file is still there, else a new one.
    pub fn load_or_create(dir: &Path) -> Result<Self, Error> {
        let token = match fs::read_to_string(dir.join(names::TOKEN_FILE)) {
            Ok(text) if text.len() == 2 * BYTES && text.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Self(text.into())
            }
            Ok(_) => Self::generate(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::generate(),
            Err(error) => return Err(at(&dir.join(names::TOKEN_FILE))(error)),
        };
        token.ensure_files(dir)?;
        Ok(token)
    }

    fn generate() -> Self {
        let mut bytes = [0_u8; BYTES];
        rand::rng().fill_bytes(&mut bytes);
        let mut text = String::with_capacity(2 * BYTES);
        for byte in bytes {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text.into())
    }

    /// Writes both files unless they are as they should be.
    pub fn ensure_files(&self, dir: &Path) -> Result<(), Error> {
        let token = self.0.expose_secret();
        let header = format!("Authorization: Bearer {token}\n");
        for (name, content) in [
            (names::TOKEN_FILE, token),
            (names::AUTH_HEADER_FILE, header.as_str()),
        ] {
            let path = dir.join(name);
            if fs::read(&path).ok().as_deref() != Some(content.as_bytes()) {
                replace(&path, content.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Whether this is the token, in a time that does not tell how much of it is right.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        same(self.0.expose_secret().as_bytes(), candidate).into()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn survives_a_restart_and_is_made_anew_when_broken() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join(names::TOKEN_FILE);
        let first = Token::load_or_create(dir.path()).expect("created");
        let text = fs::read(&file).expect("written");
        assert_eq!(text.len(), 64);
        assert!(first.matches(&text) && !first.matches(b"") && !first.matches(&text[1..]));
        for at in 0..text.len() {
            let mut other = text.clone();
            other[at] ^= 1;
            assert!(!first.matches(&other), "{at}");
        }
        let mode = fs::metadata(&file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
        let header = fs::read_to_string(dir.path().join(names::AUTH_HEADER_FILE)).expect("written");
        assert_eq!(
            header,
            format!("Authorization: Bearer {}\n", String::from_utf8_lossy(&text))
        );

        assert!(Token::load_or_create(dir.path()).expect("loaded").matches(&text));
        fs::remove_file(&file).expect("removed");
        fs::write(&file, "short").expect("written");
        assert!(!Token::load_or_create(dir.path()).expect("created").matches(&text));
    }

    #[test]
    fn debug_does_not_show_it() {
        let token = Token(SecretString::from("0123abcd"));
        assert!(!format!("{token:?}").contains("0123abcd"));
    }
}
