//! The companion's format is a promise: pods outlive controllers. What was released stays readable and is written as it
//! was; what later versions may add never costs the key. The controller's and the sidecar's tests read the same files.

use std::fs;
use std::path::Path;

use llmwarden_proto::delivery::{Companion, Delivery, SCHEMA, State};
use llmwarden_proto::names;
use secrecy::ExposeSecret;

const KEY: &str = "sk-test-golden";

/// The documents in a directory, by name.
fn documents(dir: &str) -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(dir);
    let entries = fs::read_dir(dir).expect("a directory").flatten();
    let mut all: Vec<_> = entries
        .map(|entry| {
            let name = entry.file_name().into_string().expect("a name");
            (name, fs::read_to_string(entry.path()).expect("readable"))
        })
        .collect();
    all.sort();
    all
}

fn read(document: &str) -> Companion {
    let companion = Companion::parse(|name| match name {
        names::LIVE_JSON => Some(document.as_bytes()),
        _ => Some(KEY.as_bytes()),
    });
    companion.expect("readable")
}

#[test]
fn what_schema_1_wrote_is_read_and_written_as_it_was() {
    let all = documents("schema-1");
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "active.json",
            "proxied.json",
            "routes.json",
            "settings.json",
            "withdrawn.json"
        ]
    );
    for (name, text) in all {
        let companion = read(&text);
        let strict: Delivery = serde_json::from_str(&text).expect("the controller reads it");
        assert_eq!(companion.delivery, strict, "{name}");
        assert_eq!(companion.delivery.schema, SCHEMA, "{name}");
        assert_eq!(companion.unreadable, [""; 0], "{name}");
        assert_eq!(companion.document, text.as_bytes(), "{name}");
        let written = serde_json::to_string(&companion.delivery).expect("serializes");
        assert_eq!(written, text, "{name}");
        let withdrawn = companion.delivery.state == State::Withdrawn;
        assert_eq!(companion.api_key.is_none(), withdrawn, "{name}");
    }
}

#[test]
fn of_what_the_future_may_write_the_key_is_taken() {
    let seen: Vec<_> = documents("future")
        .into_iter()
        .map(|(name, text)| {
            let companion = read(&text);
            let key = companion.api_key.as_ref().map(ExposeSecret::expose_secret);
            assert_eq!(key, Some(KEY), "{name}");
            assert_eq!(companion.delivery.version, 2_000_000_000_000, "{name}");
            let issued_at = companion.delivery.issued_at.to_string();
            assert_eq!(issued_at, "2033-05-18T03:33:20Z", "{name}");
            (name, companion.unreadable.join(" "))
        })
        .collect();
    let expected = [
        ("auth.json", "upstream"),
        ("features.json", ""),
        ("fields.json", ""),
        ("forms.json", "schema issuedAt keys values upstream requires"),
        ("routes.json", ""),
        ("state.json", ""),
    ];
    let expected = expected.map(|(name, unreadable)| (name.to_owned(), unreadable.to_owned()));
    assert_eq!(seen, expected);
}
