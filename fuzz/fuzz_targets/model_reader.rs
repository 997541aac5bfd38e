//! The models of a body: however it is cut, one answer, and never another than a reader of the whole has.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use llmwarden_proto::profile::ProviderKind;
use llmwarden_sidecar::proxy::models::{Ambiguous, Named, Scanner};
use serde_json::Value;

fn scan(body: &[u8], size: usize) -> Result<Named, Ambiguous> {
    let mut scanner = Scanner::new(&ProviderKind::Openai.upstream(None));
    for piece in body.chunks(size) {
        scanner.push(piece)?;
    }
    scanner.finish()
}

fuzz_target!(|input: &[u8]| {
    let Some((size, body)) = input.split_first() else {
        return;
    };
    let whole = scan(body, body.len().max(1));
    let cut = scan(body, usize::from(size % 16) + 1);
    assert_eq!(whole.as_ref().ok(), cut.as_ref().ok());
    let Ok(Named { model, in_tools }) = whole else {
        return;
    };
    // Half surrogate pairs are all that it passes over and this does not; of two fields with one name this takes the last.
    if let Ok(fields) = serde_json::from_slice::<HashMap<String, Value>>(body) {
        let named: Vec<_> = fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("model"))
            .collect();
        match model {
            Some(model) => {
                assert!(matches!(named[..], [(name, value)] if name == "model" && *value == model))
            }
            None => assert!(named.iter().all(|(_, value)| value.is_null())),
        }
        assert!(fields.get("fallbacks").is_none_or(Value::is_null));
        for tool in fields
            .get("tools")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            assert_ne!(tool["type"], "image_generation");
            if let Some(model) = tool["model"].as_str() {
                assert!(in_tools.iter().any(|named| named == model));
            }
        }
    }
});
