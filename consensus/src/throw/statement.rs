//! A throw of the kill switch, and what vouches for it.
//!
//! In: who throws, and that node's key. Out: a [`Statement`] that anybody may pass on. Promises: the signed bytes begin
//! with words that nothing else signed here begins with; each field has its length in them, so that no two throws
//! have the same bytes; a throw of another cluster is refused.

use serde::{Deserialize, Serialize};

use crate::command::{NAME_BYTES_MAX, TEXT_BYTES_MAX};
use crate::tls::{Credentials, Signature, SignatureError};

/// What the signed bytes begin with.
const PURPOSE: &[u8] = b"DWCP throw of the kill switch, form 1\0";

/// One node sends everything back to v1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throw {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the node.
    pub node: String,
    /// Above the number of each earlier throw of this node.
    pub number: u64,
    /// When, Unix milliseconds by the node's clock; nothing depends on it.
    pub at_unix_ms: u64,
    /// Who asked the node for it.
    pub by: String,
}

/// A throw and the signature of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The throw.
    pub throw: Throw,
    /// By the node that it names.
    pub signature: Signature,
}

/// Why a throw counts for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is another cluster's.
    #[error("it was made for the cluster {0:?}")]
    Elsewhere(String),
    /// Its node is no member.
    #[error("{0:?} is no member of this cluster")]
    Stranger(String),
    /// A field is too long.
    #[error("its {0} is too long")]
    TooLong(&'static str),
    /// Another node signed it.
    #[error("{signer} signed for {node}")]
    Another {
        /// Who signed.
        signer: String,
        /// Who should have.
        node: String,
    },
    /// The signature counts for nothing.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

/// Looks at signatures.
pub trait Notary {
    /// Does the node that the throw names vouch for it?
    ///
    /// # Errors
    /// [`Refusal`].
    fn vouches(&self, statement: &Statement) -> Result<(), Refusal>;
}

impl Throw {
    /// The bytes that are signed.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = PURPOSE.to_vec();
        for field in [&self.cluster, &self.node, &self.by] {
            bytes.extend_from_slice(&(field.len() as u64).to_le_bytes());
            bytes.extend_from_slice(field.as_bytes());
        }
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.at_unix_ms.to_le_bytes());
        bytes
    }

    /// Signs it.
    ///
    /// # Errors
    /// [`SignatureError::Unfit`].
    pub fn sign(self, credentials: &Credentials) -> Result<Statement, SignatureError> {
        let signature = credentials.sign(&self.signed_bytes())?;
        Ok(Statement {
            throw: self,
            signature,
        })
    }

    /// Checks every length.
    ///
    /// # Errors
    /// [`Refusal::TooLong`].
    pub fn check(&self) -> Result<(), Refusal> {
        for (what, field, limit) in [
            ("cluster", &self.cluster, NAME_BYTES_MAX),
            ("node", &self.node, NAME_BYTES_MAX),
            ("by", &self.by, TEXT_BYTES_MAX),
        ] {
            if field.len() > limit {
                return Err(Refusal::TooLong(what));
            }
        }
        Ok(())
    }
}

impl Notary for Credentials {
    fn vouches(&self, statement: &Statement) -> Result<(), Refusal> {
        let throw = &statement.throw;
        let signer = self.signed_by(&throw.signed_bytes(), &statement.signature)?;
        if signer == throw.node {
            return Ok(());
        }
        Err(Refusal::Another {
            signer,
            node: throw.node.clone(),
        })
    }
}
