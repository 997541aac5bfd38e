//! Today's sidecar and companions of the future: the key is delivered, and what is lacking is told.

use std::fs;
use std::path::Path;

use llmwarden_proto::names;
use llmwarden_proto::status::{AccessStatus, DeliveryState};
use llmwarden_tests::{Sidecar, Volume};

use crate::endpoint::{TEXT, assert_text};
use crate::sidecar::{KEY, assert_key, await_key, await_problem, start};

/// Of every golden file.
const VERSION: u64 = 2_000_000_000_000;

fn golden(name: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/tests/golden");
    fs::read(dir.join(name)).unwrap()
}

async fn status(sidecar: &Sidecar) -> AccessStatus {
    sidecar.status().await.unwrap().accesses.remove("agent").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_future_companion_delivers_its_key_and_what_is_lacking_is_told() {
    let forms = ["schema", "issuedAt", "keys", "values", "upstream", "requires"];
    let forms = forms.map(|field| format!("field {field}"));
    let cases: [(&str, &[&str]); 5] = [
        ("future/fields.json", &[]),
        ("future/features.json", &["schema 2", "telepathy", "time-travel"]),
        ("future/state.json", &["state suspended"]),
        ("future/auth.json", &["field upstream"]),
        ("future/forms.json", &forms.each_ref().map(String::as_str)),
    ];
    for (name, lacking) in cases {
        let document = golden(name);
        let mut volume = Volume::new().unwrap();
        volume
            .write(&[(names::API_KEY, KEY.as_bytes()), (names::LIVE_JSON, &document)])
            .unwrap();
        let sidecar = start(&[volume.source("agent")]).await;
        await_key(&sidecar, "agent", KEY).await;
        // After a crash without its source it has not forgotten anything.
        volume.unmount().unwrap();
        let sidecar = sidecar.restart().await.unwrap();
        await_problem(&sidecar, "agent", "No such file").await;
        assert_key(&sidecar, "agent", KEY).await;
        let status = status(&sidecar).await;
        assert_eq!(
            (status.state, status.version),
            (DeliveryState::Active, Some(VERSION)),
            "{name}"
        );
        assert_eq!(status.lacking, lacking, "{name}");
        let samples = sidecar.samples("llmwarden_sidecar_features_lacking{access=\"agent\"}");
        let counted = samples.await.unwrap().into_values().sum::<f64>();
        assert!(
            (counted - f64::from(u32::try_from(lacking.len()).unwrap())).abs() < 0.5,
            "{name}: {counted}"
        );
        let kept = fs::read(sidecar.file("agent", "..data/..live.json")).unwrap();
        assert_eq!(kept, document, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_state_without_a_key_leaves_the_last_good_one() {
    let mut volume = Volume::new().unwrap();
    volume.publish(1, KEY).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", KEY).await;
    volume
        .write(&[(names::LIVE_JSON, &golden("future/state.json"))])
        .unwrap();
    let status = await_problem(&sidecar, "agent", "a state that this version does not know").await;
    assert_eq!((status.state, status.version), (DeliveryState::Active, Some(1)));
    assert_key(&sidecar, "agent", KEY).await;
    assert_text(&sidecar.get(TEXT).await.unwrap(), 200, &[KEY]);
}
