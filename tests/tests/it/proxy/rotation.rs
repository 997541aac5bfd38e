//! Keys that die while they are in use.

use std::sync::atomic::{AtomicBool, Ordering};

use llmwarden_tests::fake_provider::Pace;
use tokio::time::sleep;

use super::*;

/// Sends requests one after another until told to stop: how many were answered, and what went wrong.
async fn keep_asking(proxied: &Proxied, stream: bool, stop: &AtomicBool) -> (u32, Vec<String>) {
    let (mut answered, mut failures) = (0, Vec::new());
    let end = if stream { "data: [DONE]\n\n" } else { "piece 6" };
    while !stop.load(Ordering::Relaxed) {
        let mut peer = proxied.send(&proxied.chat(&hello(stream))).await;
        let (text, broken) = peer.rest().await;
        let complete = text.contains(end) && (!stream || text.ends_with("0\r\n\r\n"));
        if text.starts_with("HTTP/1.1 200 ") && complete && !broken {
            answered += 1;
        } else {
            failures.push(text);
        }
    }
    (answered, failures)
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_rotations_under_load_are_not_noticed_though_old_keys_die_first() {
    let (provider, mut proxied) = Proxied::to_fake().await;
    provider.set_pace(Pace {
        pieces: 6,
        every: Duration::from_millis(5),
    });
    let stop = AtomicBool::new(false);
    let mut volume = std::mem::replace(&mut proxied.volume, Volume::new().unwrap());
    let asking = (0..8).map(|number| keep_asking(&proxied, number % 2 == 1, &stop));
    let rotating = async {
        let mut old = KEY.to_owned();
        for version in 2..=51 {
            let key = format!("sk-test-proxy-{version}-0123456789abcdef");
            provider.allow([key.as_str()]);
            // As long as the kubelet and an annotation take.
            sleep(Duration::from_millis(100 + version % 3 * 100)).await;
            let previous = (version % 2 == 0).then_some(old.as_str());
            publish(&mut volume, &proxied.upstream, version, &key, previous);
            await_version(&proxied.sidecar, version).await;
            old = key;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (all, ()) = tokio::join!(futures::future::join_all(asking.collect::<Vec<_>>()), rotating);
    let answered: u32 = all.iter().map(|(answered, _)| answered).sum();
    let failures: Vec<_> = all.iter().flat_map(|(_, failures)| failures).collect();
    assert!(failures.is_empty(), "{} of {answered}: {:#?}", failures.len(), failures.first());
    assert!(answered > 500, "{answered}");
    let seen = provider.seen();
    assert!(seen.iter().any(|seen| seen.key == Some(50)));
    let retries = proxied.sidecar.samples("llmwarden_sidecar_proxy_retries_total").await.unwrap();
    assert!(retries["{access=\"agent\"}"] >= 50.0, "{retries:?}");
}
