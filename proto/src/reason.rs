//! Every condition type and every reason of a condition or event, in one table.

use std::fmt;

/// A condition type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionType {
    /// The access (or provider) does what it declares.
    Ready,
    /// The Secrets hold a key.
    CredentialProvisioned,
    /// The provider's master key is there. Whether the provider takes it has to be asked of the provider.
    CredentialValid,
    /// The interval is over and nobody replaced the master key.
    RotationOverdue,
    /// Whether running consumers take a new key without a restart.
    LiveRotation,
    /// Every pod that is to have the sidecar has it.
    InjectionReady,
    /// A running sidecar is older than what the companion asks of it.
    SidecarOutdated,
    /// Whether no agent can use other models than those of the list.
    ModelsEnforced,
}

impl ConditionType {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Ready,
        Self::CredentialProvisioned,
        Self::CredentialValid,
        Self::RotationOverdue,
        Self::LiveRotation,
        Self::InjectionReady,
        Self::SidecarOutdated,
        Self::ModelsEnforced,
    ];

    /// The `type` of the condition.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::CredentialProvisioned => "CredentialProvisioned",
            Self::CredentialValid => "CredentialValid",
            Self::RotationOverdue => "RotationOverdue",
            Self::LiveRotation => "LiveRotation",
            Self::InjectionReady => "InjectionReady",
            Self::SidecarOutdated => "SidecarOutdated",
            Self::ModelsEnforced => "ModelsEnforced",
        }
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Why a condition is what it is, or what an event is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The text in conditions, events and metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

reasons! {
    // What holds a credential back.
    /// The `LLMProvider` that `spec.providerRef.name` names does not exist.
    ProviderMissing,
    /// The controller was told to serve other namespaces alone.
    NamespaceNotServed,
    /// The provider's `namespaceSelector` does not select the namespace.
    NamespaceNotAllowed,
    /// The provider's `namespaceSelector` cannot be read.
    NamespaceSelectorInvalid,
    /// A model in `spec.models` is not in the provider's `allowedModels`.
    ModelNotAllowed,
    /// A Secret of the needed name belongs to somebody else.
    SecretConflict,
    /// `secretRef` points at a namespace that the controller was not told to trust.
    MasterSecretNotTrusted,
    /// `secretRef` points at a kind of Secret that is never a master key.
    MasterSecretForbidden,
    /// The Secret that `secretRef` names does not exist.
    MasterSecretMissing,
    /// The Secret that `secretRef` names lacks the key that it names.
    MasterKeyMissing,
    /// The master key is empty.
    MasterKeyEmpty,
    /// The master key is not one line of printable text.
    MasterKeyInvalid,
    /// The provider's `auth.type` is not available yet.
    AuthTypeUnsupported,
    /// The provider's `auth.apiKey.issuer` is not available yet.
    IssuerUnsupported,
    /// The provider's SDKs cannot be used through the localhost proxy.
    ProxyUnsupported,
    /// The API server refused a write.
    WriteRefused,

    // What happened to one.
    /// Both Secrets hold a key.
    Provisioned,
    /// A new key is in the Secrets.
    Rotated,
    /// New settings are in the companion.
    SettingsChanged,
    /// A Secret that was edited or deleted is as it was.
    Restored,
    /// A Secret that somebody made immutable was made anew: pods that mount it must restart.
    ImmutableSecretRecreated,
    /// A Secret was taken over because its owner asked for it.
    Adopted,
    /// `secretName` changed: the Secret of the old name is gone.
    SecretRemoved,
    /// The key was withdrawn.
    Withdrawn,
    /// A rotation was asked for, but the master key is the one already delivered.
    NothingToRotate,
    /// The rotation interval is over.
    RotationOverdue,
    /// The next rotation is still ahead.
    RotationScheduled,

    // Of pods.
    /// Every pod that is to have the sidecar has it.
    PodsInjected,
    /// The same, but a pod is made so that its containers can get at the sidecar's key in proxy mode.
    KeyNotIsolated,
    /// No pod asks for the access, or is selected by it.
    NoPodMatched,
    /// A pod that is to have the sidecar was created without it.
    PodsMissingInjection,
    /// A sidecar does not know what the companion asks of it.
    SidecarLacksFeatures,

    // Of what is promised to those who use a key.
    /// The proxy puts the current key on each request.
    ThroughProxy,
    /// File and endpoint have each new key, and nobody is known to read it elsewhere.
    DeliveredLive,
    /// kagent restarts agents when the Secret that they name changes.
    KagentHashesSecret,
    /// Programs read their environment once, when they start.
    KeyInEnvironment,
    /// The proxy refuses other models.
    EnforcedByProxy,
    /// Who holds the key can use any model.
    NotEnforced,

    // Of a provider.
    /// The master key can be read.
    MasterKeyPresent,
    /// Nobody asked the provider yet whether the key works.
    NotChecked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
