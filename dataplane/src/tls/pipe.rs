//! One connection under TLS, without its socket.
//!
//! In: bytes from the connection, one record at a time at most; what to say inside. Out: bytes for the
//! connection, what the peer says inside. Promises: never wants a byte behind the current record, so that
//! what follows the last one is left in the socket for the lane; holds what the TLS library needs for one
//! handshake and one message.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Connection, Error, ServerConfig,
    ServerConnection,
};

use super::{PROTOCOL, TlsError, peers};
use crate::transport::handshake::MAX_MESSAGE_BYTES;
use crate::transport::wire::keys::Psk;

/// Type, version and length of a record.
const HEADER_BYTES: usize = 5;
/// RFC 8446, section 5.2.
const MAX_RECORD_BYTES: usize = (1 << 14) + 256;
/// What the peer may say inside before anybody listens.
const MAX_SAID_BYTES: usize = 2 * MAX_MESSAGE_BYTES;
/// What the exporter's secret is for (RFC 8446, section 7.5).
const EXPORTER: &[u8] = b"EXPORTER-dwcp-lane-handshake";

/// Where in a sequence of records the next byte stands.
#[derive(Debug, Default)]
pub struct Records {
    header: [u8; HEADER_BYTES],
    have: usize,
    left: usize,
}

impl Records {
    /// Bytes to the end of the header, or else of the record; at least 1.
    #[must_use]
    pub const fn wanted(&self) -> usize {
        if self.left > 0 {
            self.left
        } else {
            HEADER_BYTES - self.have
        }
    }

    /// Moves over `bytes`, at most as many as were wanted. Says whether a record is whole.
    ///
    /// # Errors
    /// [`TlsError::NotTls`] for a header that no record has.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<bool, TlsError> {
        if bytes.is_empty() || bytes.len() > self.wanted() {
            return Err(TlsError::NotTls);
        }
        if self.left > 0 {
            self.left -= bytes.len();
            return Ok(self.left == 0);
        }
        self.header[self.have..self.have + bytes.len()].copy_from_slice(bytes);
        self.have += bytes.len();
        if self.have < HEADER_BYTES {
            return Ok(false);
        }
        self.have = 0;
        let [kind, major, _, high, low] = self.header;
        self.left = usize::from(u16::from_be_bytes([high, low]));
        let known = (20..=23).contains(&kind) && major == 3;
        if !known || self.left == 0 || self.left > MAX_RECORD_BYTES {
            return Err(TlsError::NotTls);
        }
        Ok(false)
    }
}

/// See the module.
pub struct Pipe {
    connection: Connection,
    records: Records,
}

impl Pipe {
    /// The end that dials.
    ///
    /// # Errors
    /// [`TlsError::Broken`], as a rule without random bytes.
    pub fn dial(settings: &Arc<ClientConfig>, peer: SocketAddr) -> Result<Self, TlsError> {
        let name = ServerName::IpAddress(peer.ip().into());
        let connection = ClientConnection::new(Arc::clone(settings), name).map_err(trouble)?;
        Ok(Self::new(connection.into()))
    }

    /// The end that is dialled.
    ///
    /// # Errors
    /// [`TlsError::Broken`], as a rule without random bytes.
    pub fn accept(settings: &Arc<ServerConfig>) -> Result<Self, TlsError> {
        let connection = ServerConnection::new(Arc::clone(settings)).map_err(trouble)?;
        Ok(Self::new(connection.into()))
    }

    fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(2 * MAX_MESSAGE_BYTES));
        Self {
            connection,
            records: Records::default(),
        }
    }

    /// Bytes to read next at most.
    #[must_use]
    pub const fn wanted(&self) -> usize {
        self.records.wanted()
    }

    /// Takes bytes, at most as many as were wanted. After an error [`Pipe::take_bytes`] may have an alert
    /// that tells the peer why.
    ///
    /// # Errors
    /// [`TlsError`]; close the connection.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        let whole = self.records.pass(bytes)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.connection.read_tls(&mut rest);
            if !matches!(taken, Ok(1..)) {
                return Err(TlsError::Broken(
                    "the peer's handshake is too long".to_owned(),
                ));
            }
        }
        if whole {
            let state = self.connection.process_new_packets().map_err(trouble)?;
            if state.plaintext_bytes_to_read() > MAX_SAID_BYTES {
                return Err(TlsError::Broken("the peer says too much".to_owned()));
            }
        }
        Ok(())
    }

    /// Is the peer known? Then [`Pipe::peer`], [`Pipe::secret`], [`Pipe::say`] and [`Pipe::heard`] work.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// The peer's node.
    ///
    /// # Errors
    /// [`TlsError`] if it is not known, or speaks another protocol inside.
    pub fn peer(&self) -> Result<String, TlsError> {
        if self.connection.alpn_protocol() != Some(PROTOCOL) {
            return Err(TlsError::OtherProtocol);
        }
        let own = self.chain().first().ok_or(TlsError::NoCertificate)?;
        peers::node_in(own).ok_or(TlsError::Certificate(peers::Flaw::NotForMigration))
    }

    /// The certificates that the peer showed.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
    }

    /// What both ends of this connection know and nobody else.
    ///
    /// # Errors
    /// [`TlsError::Broken`] before the connection is up.
    pub fn secret(&self) -> Result<Psk, TlsError> {
        let secret = self
            .connection
            .export_keying_material([0; 32], EXPORTER, None);
        secret.map(Psk).map_err(trouble)
    }

    /// Says something inside.
    ///
    /// # Errors
    /// [`TlsError::Broken`] if more is waiting than one answer.
    pub fn say(&mut self, message: &[u8]) -> Result<(), TlsError> {
        let said = self.connection.writer().write_all(message);
        said.map_err(|error| TlsError::Broken(error.to_string()))
    }

    /// What the peer said inside; 0 bytes for nothing.
    pub fn heard(&mut self, into: &mut [u8]) -> usize {
        self.connection.reader().read(into).unwrap_or(0)
    }

    /// Moves what is to be written to `out`.
    pub fn take_bytes(&mut self, out: &mut impl Extend<u8>) {
        let mut bytes = Vec::new();
        while self.connection.wants_write() {
            if !matches!(self.connection.write_tls(&mut bytes), Ok(1..)) {
                break;
            }
        }
        out.extend(bytes);
    }
}

fn trouble(error: Error) -> TlsError {
    match error {
        Error::InvalidCertificate(error) => peers::flaw_in(&error).into(),
        Error::NoCertificatesPresented => TlsError::NoCertificate,
        // Others, which any damage on the way brings about, are worth another try.
        Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure),
        ) => TlsError::Refused(alert),
        Error::AlertReceived(AlertDescription::NoApplicationProtocol) => TlsError::OtherProtocol,
        Error::NoApplicationProtocol => TlsError::OtherProtocol,
        error => TlsError::Broken(error.to_string()),
    }
}
