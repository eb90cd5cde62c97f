//! This node's certificate and whom it trusts, ready for use.
//!
//! In: `[tls]`, the node's name, the time. Out: both ends' settings of the TLS library. Promises: what is in
//! use is whole: files that cannot be read, or that do not fit together, change nothing of what they are for;
//! authorities and revocations that were read anew count at once, also where this node's own certificate is no
//! longer good, for its fault must not keep others in that were revoked; connections under handshake and
//! sessions keep what they began with.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use webpki::KeyUsage;

use super::files::{self, FileError, Own, Stamp};
use super::peers::{Flaw, Peers};
use super::{PROTOCOL, names};
use crate::config::TlsConfig;

/// See the module.
pub struct Credentials {
    config: TlsConfig,
    node: String,
    provider: Arc<CryptoProvider>,
    /// Of the files when they were last read, good or not.
    stamp: Stamp,
    /// Our certificate as it was last good.
    own: Own,
    /// Whom we trust.
    peers: Arc<Peers>,
    /// For peers that dial us.
    pub server: Arc<ServerConfig>,
    /// For peers that we dial.
    pub client: Arc<ClientConfig>,
}

/// Why the files do not make credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// One of them.
    #[error(transparent)]
    File(#[from] FileError),
    /// Key and certificate, as a rule.
    #[error("cert and key of [tls]: {0}; copy both from one `dwcpctl pki issue`")]
    Pair(rustls::Error),
    /// The node's name.
    #[error(
        "node = \"{0}\" cannot stand in a certificate: use 1 to 64 letters, digits, dots, dashes or underscores"
    )]
    Name(String),
    /// Our own certificate.
    #[error("this node's certificate {0}")]
    Flaw(#[from] Flaw),
    /// It is another node's.
    #[error("the certificate is for node {found}, but node = \"{node}\": issue one for this node")]
    OtherNode {
        /// The name in the certificate.
        found: String,
        /// The name in the configuration.
        node: String,
    },
}

/// What reading the files again came to.
#[derive(Debug)]
pub enum Reloaded {
    /// All of them are in use.
    All,
    /// Authorities and revocations are in use; our certificate and key stay as they were.
    TrustAlone(CredentialsError),
}

impl Credentials {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn load(config: &TlsConfig, node: &str) -> Result<Self, CredentialsError> {
        if names::uri_of(node).is_none() {
            return Err(CredentialsError::Name(node.to_owned()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let stamp = files::stamp(config);
        let peers = peers(config, &provider)?;
        let own = own(config, node, &peers)?;
        let (server, client) = settings(&peers, &own, &provider)?;
        Ok(Self {
            config: config.clone(),
            node: node.to_owned(),
            provider,
            stamp,
            own,
            peers,
            server,
            client,
        })
    }

    /// The table that it was made of.
    #[must_use]
    pub const fn config(&self) -> &TlsConfig {
        &self.config
    }

    /// Have the files changed since they were last read?
    #[must_use]
    pub fn is_stale(&self) -> bool {
        files::stamp(&self.config) != self.stamp
    }

    /// Reads the files again. Handshakes that begin from now on use them. With authorities that can be read, a
    /// fault of our own certificate or key is told, and stops nothing else.
    ///
    /// # Errors
    /// [`CredentialsError`] of the authorities or revocations; what was in use stays in use until the files
    /// change once more.
    pub fn reload(&mut self) -> Result<Reloaded, CredentialsError> {
        self.stamp = files::stamp(&self.config);
        let peers = peers(&self.config, &self.provider)?;
        let renewed = own(&self.config, &self.node, &peers)
            .and_then(|own| Ok((settings(&peers, &own, &self.provider)?, own)));
        let reloaded = match renewed {
            Ok((settings, own)) => {
                (self.server, self.client) = settings;
                self.own = own;
                Reloaded::All
            }
            Err(fault) => {
                (self.server, self.client) = settings(&peers, &self.own, &self.provider)?;
                Reloaded::TrustAlone(fault)
            }
        };
        self.peers = peers;
        Ok(reloaded)
    }

    /// Is the certificate of a peer that was let in before, which dialled us or not, still good?
    ///
    /// # Errors
    /// [`Flaw`].
    pub fn check_again(&self, chain: &[CertificateDer<'_>], has_dialled: bool) -> Result<(), Flaw> {
        let (own, between) = chain.split_first().ok_or(Flaw::Broken)?;
        let usage = if has_dialled {
            KeyUsage::client_auth()
        } else {
            KeyUsage::server_auth()
        };
        let judged = self.peers.node_of(own, between, UnixTime::now(), usage);
        judged.map(|_| ())
    }
}

fn peers(
    config: &TlsConfig,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<Peers>, CredentialsError> {
    let trust = files::read_trust(config)?;
    let peers = Peers::new(trust.anchors, trust.revoked, Arc::clone(provider));
    Ok(Arc::new(peers))
}

/// Our certificate and key. What peers would refuse is better refused here, with its cure.
fn own(config: &TlsConfig, node: &str, peers: &Peers) -> Result<Own, CredentialsError> {
    let own = files::read_own(config)?;
    if let Some((first, between)) = own.chain.split_first() {
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            let found = peers.node_of(first, between, UnixTime::now(), usage)?;
            if found != node {
                return Err(CredentialsError::OtherNode {
                    found,
                    node: node.to_owned(),
                });
            }
        }
    }
    Ok(own)
}

fn settings(
    peers: &Arc<Peers>,
    own: &Own,
    provider: &Arc<CryptoProvider>,
) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>), CredentialsError> {
    let versions = &[&rustls::version::TLS13];
    let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)
        .map_err(CredentialsError::Pair)?
        .with_client_cert_verifier(Arc::clone(peers) as _)
        .with_single_cert(own.chain.clone(), own.key.clone_key())
        .map_err(CredentialsError::Pair)?;
    server.alpn_protocols = vec![PROTOCOL.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    // A ticket would come behind the handshake's last byte, among the lane's frames.
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)
        .map_err(CredentialsError::Pair)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(peers) as _)
        .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
        .map_err(CredentialsError::Pair)?;
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    Ok((Arc::new(server), Arc::new(client)))
}
