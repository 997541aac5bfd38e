//! llmwarden.
