//! Rotations without a pause under readers of the file, of the endpoint and of the long poll. `make soak` runs many more.

use llmwarden_proto::names;
use llmwarden_tests::Volume;
use llmwarden_tests::readers::Readers;

use crate::endpoint::TEXT;
use crate::sidecar::{await_key, start};
use crate::support::SOON;

/// How many rotations, unless `LLMWARDEN_SOAK_ROTATIONS` says otherwise.
const ROTATIONS: u64 = 500;
/// After so many the readers are waited for; in between, versions follow each other as fast as they can be written.
const BURST: u64 = 5;

/// Keys whose halves can be told from other keys'.
fn key(version: u64) -> String {
    format!(
        "sk-test-soak-{version:06}-{}",
        format!("{version:06}").repeat(700)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_reader_ever_sees_a_torn_missing_or_older_key() {
    let rotations = std::env::var("LLMWARDEN_SOAK_ROTATIONS");
    let rotations = rotations.map_or(ROTATIONS, |number| number.parse().unwrap());
    let mut volume = Volume::new().unwrap();
    volume.publish(1, &key(1)).unwrap();
    let sidecar = start(&[volume.source("agent")]).await;
    await_key(&sidecar, "agent", &key(1)).await;
    let url = sidecar.url(TEXT);
    let file = sidecar.file("agent", names::API_KEY);
    let mut readers = Readers::start(file, &url, &sidecar.auth_header(), &key(1)).unwrap();
    readers.wait_too(&url, &sidecar.auth_header()).unwrap();
    for version in 2..=rotations + 1 {
        readers.expect(&key(version));
        volume.publish(version, &key(version)).unwrap();
        if version % BURST == 0 || version > rotations {
            readers.saw(&key(version), SOON).await.unwrap();
        }
    }
    let (file, endpoint) = readers.tallies();
    let long_poll = readers.waited(&key(rotations + 1), SOON).await.unwrap();
    for (name, tally) in [("file", file), ("endpoint", endpoint), ("long poll", long_poll)] {
        println!("{rotations} rotations, {name}: {tally:?}");
        assert_eq!(tally.bad(), 0, "{name}: {tally:?}");
    }
}
