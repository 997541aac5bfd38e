//! Query strings, which are passed on byte by byte, and yet have to be read as the provider reads them.

use std::borrow::Cow;

/// The parameters of a query: each as it stands, its name decoded, and its value as it stands.
pub fn parameters(query: &str) -> impl Iterator<Item = (&str, Cow<'_, str>, &str)> {
    query.split('&').map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (parameter, decoded(name), value)
    })
}

/// A text without its percent-encoding; what is not properly encoded stands for itself.
pub fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if let (b'%', Some(decoded)) = (byte, tail.first_chunk().and_then(octet)) {
            bytes.push(decoded);
            rest = &tail[2..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// The byte that two hexadecimal digits stand for.
pub fn octet([high, low]: &[u8; 2]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_text_is_read_as_a_server_reads_it() {
        for (text, expected) in [
            ("", ""),
            ("key", "key"),
            ("%6bey", "key"),
            ("%6Bey", "key"),
            ("a%2", "a%2"),
            ("a%zz%", "a%zz%"),
            ("%c3%a9", "é"),
            ("%ff", "\u{fffd}"),
        ] {
            assert_eq!(decoded(text), expected, "{text}");
        }
    }

    #[test]
    fn parameters_stand_between_ampersands() {
        let all: Vec<_> = parameters("a=1&%62=x=y&c&").collect();
        let expected = [
            ("a=1", "a", "1"),
            ("%62=x=y", "b", "x=y"),
            ("c", "c", ""),
            ("", "", ""),
        ];
        assert!(
            all.iter()
                .zip(expected)
                .all(|((text, name, value), other)| (*text, name.as_ref(), *value) == other)
        );
        assert_eq!(all.len(), expected.len());
    }
}
