//! Companions: no document makes the reader fail otherwise than by an error, and none that can be read costs the key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmwarden_proto::delivery::{Companion, Delivery, MAX_VERSION, State};
use llmwarden_proto::names;
use llmwarden_sidecar::store::{Held, Mode};

const KEY: &[u8] = b"sk-test-fuzz";

fn parse(document: &[u8]) -> Option<Companion> {
    let companion = Companion::parse(|name| match name {
        names::LIVE_JSON => Some(document),
        names::API_KEY => Some(KEY),
        _ => None,
    });
    companion.ok()
}

fuzz_target!(|document: &[u8]| {
    // What no controller ever wrote is not to be read.
    let strict = serde_json::from_slice::<Delivery>(document)
        .ok()
        .filter(|delivery| delivery.version <= MAX_VERSION);
    let Some(companion) = parse(document) else {
        assert!(
            strict.is_none(),
            "it is as a controller writes it, and can't be read"
        );
        return;
    };
    let withdrawn = companion.delivery.state == State::Withdrawn;
    assert_eq!(companion.api_key.is_none(), withdrawn);
    if let Some(strict) = strict {
        assert_eq!(companion.delivery, strict);
        assert!(companion.unreadable.is_empty());
    }
    // What is kept is read again as what it was.
    let again = parse(&companion.document).expect("it was readable");
    assert_eq!(
        (&again.delivery, &again.unreadable),
        (&companion.delivery, &companion.unreadable)
    );
    // What is written is read as what it was.
    let written = serde_json::to_vec(&companion.delivery).expect("it serializes");
    assert_eq!(parse(&written).expect("readable").delivery, companion.delivery);

    if let Ok(Held::Active(delivered)) = Held::of(companion, &Mode::Direct) {
        assert!(
            delivered
                .expose(names::API_KEY)
                .is_some_and(|key| key.as_bytes() == KEY)
        );
        for name in delivered.names() {
            assert!(delivered.expose(name).is_some() && !name.contains('/') && !name.starts_with(".."));
        }
    }
});
