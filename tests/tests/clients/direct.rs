//! Without a sidecar: what the SDKs make of the fake is what they make of the provider that it stands for.

use llmwarden_tests::FakeProvider;

use crate::program::{Program, report};
use crate::subjects::{Subject, environment};

const KEY: &str = "sk-test-direct-0123456789";

async fn direct(program: Program) {
    for subject in Subject::of(program) {
        let provider = FakeProvider::start(subject.provider).await.unwrap();
        provider.allow([KEY]);
        let environment = environment(subject.provider, provider.base_url(), KEY);
        let outcomes = program
            .run(subject.sdk, &subject.scenarios(program), &environment)
            .await;
        report("directly", program, &subject.name(), &outcomes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdks_that_kagent_locks() {
    direct(Program::Locked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_python_sdks() {
    direct(Program::Newest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_node_sdks() {
    direct(Program::Node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_sdks_of_kagent() {
    direct(Program::Go).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_go_sdks() {
    direct(Program::GoNewest).await;
}
