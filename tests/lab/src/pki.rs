//! An authority for the nodes of a lab, made by `dwcpctl pki` as an operator would.
//!
//! In: names of nodes. Out: certificates, and the lines for a data plane's configuration that use them where
//! they lie. Promise: all of it goes with the value.

use std::process::Command;

use crate::dir::LabDir;
use crate::stack::{StackError, binary};

/// See the module.
pub struct Authority {
    dir: LabDir,
}

impl Authority {
    /// A new one, with certificates for these nodes.
    ///
    /// # Errors
    /// [`StackError`].
    pub fn new(nodes: &[&str]) -> Result<Self, StackError> {
        let authority = Self {
            dir: LabDir::new("pki")?,
        };
        authority.pki("init", None)?;
        for node in nodes {
            authority.pki("issue", Some(node))?;
        }
        Ok(authority)
    }

    /// A new certificate and key for a node, in the place of its old ones.
    ///
    /// # Errors
    /// [`StackError`].
    pub fn rotate(&self, node: &str) -> Result<(), StackError> {
        self.pki("rotate", Some(node))
    }

    /// Lines for the end of a data plane's configuration.
    #[must_use]
    pub fn table(&self, node: &str) -> String {
        let file = |name: &str| self.dir.path().join("ca").join(name).display().to_string();
        format!(
            "[tls]\nca = \"{}\"\ncrl = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
            file("ca.pem"),
            file("crl.pem"),
            file(&format!("nodes/{node}/cert.pem")),
            file(&format!("nodes/{node}/key.pem")),
        )
    }

    fn pki(&self, what: &str, node: Option<&str>) -> Result<(), StackError> {
        let mut command = Command::new(binary("dwcpctl")?);
        command.args(["pki", what]).arg(self.dir.path().join("ca"));
        let output = command.args(node).output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(StackError::Io(std::io::Error::other(said)))
    }
}
