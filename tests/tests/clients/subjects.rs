//! Which SDKs do what, against which provider.

use llmwarden_proto::profile::ProviderKind;

use crate::program::Program;

/// An SDK, and a provider that it is for.
#[derive(Debug)]
pub struct Subject {
    pub sdk: &'static str,
    pub provider: ProviderKind,
    programs: &'static [Program],
    /// Separated by spaces.
    scenarios: &'static str,
}

const ALL: &[Program] = &[
    Program::Locked,
    Program::Newest,
    Program::Node,
    Program::Go,
    Program::GoNewest,
];
const NO_GO: &[Program] = &[Program::Locked, Program::Newest, Program::Node];
const PYTHON: &[Program] = &[Program::Locked, Program::Newest];

pub const SUBJECTS: &[Subject] = &[
    Subject {
        sdk: "openai",
        provider: ProviderKind::Openai,
        programs: ALL,
        scenarios: "chat stream tool stream-tool async responses responses-stream embeddings models unauthorized \
                    forbidden bad-request unknown-model rate-limited overloaded broken retry cut error-in-stream",
    },
    Subject {
        sdk: "anthropic",
        provider: ProviderKind::Anthropic,
        programs: ALL,
        scenarios: "chat stream tool stream-tool async count-tokens models unauthorized forbidden bad-request \
                    unknown-model rate-limited overloaded broken retry cut error-in-stream",
    },
    Subject {
        sdk: "openai",
        provider: ProviderKind::AzureOpenai,
        programs: NO_GO,
        scenarios: "chat stream tool stream-tool async embeddings unauthorized forbidden bad-request unknown-model \
                    rate-limited overloaded broken retry cut error-in-stream",
    },
    Subject {
        sdk: "gemini",
        provider: ProviderKind::Gemini,
        programs: NO_GO,
        scenarios: "chat stream tool async embeddings models count-tokens unauthorized forbidden unknown-model \
                    rate-limited overloaded broken retry cut error-in-stream",
    },
    Subject {
        sdk: "openai",
        provider: ProviderKind::Openrouter,
        // openai-go v3.41.0 takes the comments in OpenRouter's streams for broken events.
        programs: &[Program::Locked, Program::Newest, Program::Node, Program::GoNewest],
        scenarios: "chat stream tool unauthorized forbidden rate-limited retry cut error-in-stream",
    },
    Subject {
        sdk: "openai",
        provider: ProviderKind::Litellm,
        programs: &[Program::Newest, Program::Go, Program::GoNewest],
        scenarios: "chat stream tool unauthorized forbidden rate-limited retry cut error-in-stream",
    },
    Subject {
        sdk: "openai",
        provider: ProviderKind::Custom,
        programs: &[Program::Newest],
        scenarios: "chat stream tool unauthorized forbidden rate-limited retry cut error-in-stream",
    },
    Subject {
        sdk: "langchain",
        provider: ProviderKind::Openai,
        programs: PYTHON,
        scenarios: "chat stream tool async embeddings unauthorized forbidden rate-limited",
    },
    Subject {
        sdk: "langchain",
        provider: ProviderKind::AzureOpenai,
        programs: PYTHON,
        scenarios: "chat stream tool async embeddings unauthorized forbidden rate-limited",
    },
    Subject {
        sdk: "langchain",
        provider: ProviderKind::Anthropic,
        programs: PYTHON,
        scenarios: "chat stream tool async unauthorized forbidden rate-limited",
    },
    Subject {
        sdk: "agents",
        provider: ProviderKind::Openai,
        programs: PYTHON,
        scenarios: "chat stream tool forbidden",
    },
];

impl Subject {
    /// Those of a program.
    pub fn of(program: Program) -> impl Iterator<Item = &'static Self> {
        SUBJECTS
            .iter()
            .filter(move |subject| subject.programs.contains(&program))
    }

    /// What is asked of a program: only in Python is there another client for asynchronous programs.
    pub fn scenarios(&self, program: Program) -> Vec<&'static str> {
        let asked = self.scenarios.split_whitespace();
        asked
            .filter(|scenario| *scenario != "async" || PYTHON.contains(&program))
            .collect()
    }

    /// What it is called in reports.
    pub fn name(&self) -> String {
        format!("{} for {}", self.sdk, self.provider.as_str())
    }
}

/// The variables that the SDKs for a provider read.
pub fn environment(provider: ProviderKind, base_url: String, key: &str) -> Vec<(&'static str, String)> {
    let names = provider.sdk_env();
    let mut variables = vec![(names.key, key.to_owned()), (names.base_url, base_url)];
    if provider == ProviderKind::AzureOpenai {
        variables.push(("OPENAI_API_VERSION", "2024-10-21".to_owned()));
    }
    variables
}
