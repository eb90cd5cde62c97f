//! QUIC as a state machine (quinn-proto) over the same datagrams: one connection, one stream, driven
//! from the poll loop of each side.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use dwcp_drivers::dpdk::datagrams::{Datagrams, Sent};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event, ServerConfig, StreamEvent, StreamId, TransportConfig, VarInt, WriteError,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{Outcome, PAYLOAD_BYTES, PORT, Plan, WARM_UP, address, open};

const NAME: &str = "receiver";
/// Room for all that can be on the way.
const WINDOW_BYTES: u32 = 32 << 20;

pub(crate) fn make_certificate(folder: &Path) -> Outcome<()> {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
    std::fs::write(folder.join("certificate"), made.cert.der())?;
    std::fs::write(folder.join("key"), made.signing_key.serialize_der())?;
    Ok(())
}

fn certificate(folder: &Path) -> Outcome<CertificateDer<'static>> {
    Ok(std::fs::read(folder.join("certificate"))?.into())
}

fn transport() -> Outcome<Arc<TransportConfig>> {
    let mut config = TransportConfig::default();
    let payload = u16::try_from(PAYLOAD_BYTES)?;
    config
        .initial_mtu(payload)
        .min_mtu(payload)
        .mtu_discovery_config(None)
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(WINDOW_BYTES.into());
    Ok(Arc::new(config))
}

fn endpoint(server: Option<ServerConfig>) -> Outcome<Endpoint> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(u16::try_from(PAYLOAD_BYTES)?)?;
    Ok(Endpoint::new(
        Arc::new(config),
        server.map(Arc::new),
        false,
        None,
    ))
}

/// One side: QUIC's state, and datagrams that the device had no room for.
struct Side {
    datagrams: Datagrams,
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    arrived: Vec<(SocketAddr, BytesMut)>,
    unsent: VecDeque<(SocketAddr, Vec<u8>)>,
    scratch: Vec<u8>,
}

impl Side {
    fn new(datagrams: Datagrams, endpoint: Endpoint) -> Self {
        Self {
            datagrams,
            endpoint,
            connection: None,
            arrived: Vec::with_capacity(64),
            unsent: VecDeque::new(),
            scratch: Vec::with_capacity(16 * PAYLOAD_BYTES),
        }
    }

    fn read(&mut self) -> Outcome<()> {
        let arrived = &mut self.arrived;
        self.datagrams.recv(&mut |from, payload| {
            arrived.push((from, BytesMut::from(&*payload)));
        });
        let now = Instant::now();
        for (from, bytes) in self.arrived.drain(..) {
            self.scratch.clear();
            let event = self
                .endpoint
                .handle(now, from, None, None, bytes, &mut self.scratch);
            match event {
                Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                    if let Some((known, connection)) = &mut self.connection
                        && *known == handle
                    {
                        connection.handle_event(event);
                    }
                }
                Some(DatagramEvent::NewConnection(incoming)) => {
                    let accepted = self.endpoint.accept(incoming, now, &mut self.scratch, None);
                    self.connection = Some(accepted.map_err(|refused| refused.cause)?);
                }
                Some(DatagramEvent::Response(answer)) => {
                    let bytes = self.scratch.get(..answer.size).unwrap_or_default();
                    self.unsent.push_back((answer.destination, bytes.to_vec()));
                }
                None => {}
            }
        }
        Ok(())
    }

    fn write(&mut self) {
        let now = Instant::now();
        while let Some((to, bytes)) = self.unsent.front() {
            let copy = &mut |room: &mut [u8]| {
                room[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            };
            if self.datagrams.send(*to, copy) != Sent::Queued {
                self.datagrams.flush();
                return;
            }
            self.unsent.pop_front();
        }
        let Some((handle, connection)) = &mut self.connection else {
            return;
        };
        if connection.poll_timeout().is_some_and(|due| due <= now) {
            connection.handle_timeout(now);
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        for _ in 0..8 {
            self.scratch.clear();
            let Some(transmit) = connection.poll_transmit(now, 10, &mut self.scratch) else {
                break;
            };
            let all = self.scratch.get(..transmit.size).unwrap_or_default();
            let segment = transmit.segment_size.unwrap_or(transmit.size);
            for bytes in all.chunks(segment) {
                let copy = &mut |room: &mut [u8]| {
                    room[..bytes.len()].copy_from_slice(bytes);
                    bytes.len()
                };
                let waits = !self.unsent.is_empty();
                if waits || self.datagrams.send(transmit.destination, copy) != Sent::Queued {
                    self.unsent
                        .push_back((transmit.destination, bytes.to_vec()));
                }
            }
            if !self.unsent.is_empty() {
                break;
            }
        }
        self.datagrams.flush();
    }
}

pub(crate) fn send(plan: &Plan) -> Outcome<()> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate(&plan.folder)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport()?);

    let (mut port, datagrams) = open(plan, 1)?;
    let mut side = Side::new(datagrams, endpoint(None)?);
    let to = SocketAddr::new(address(2).ip, PORT);
    let chunk = Bytes::from(vec![0x5a_u8; 1 << 20]);
    let mut stream: Option<StreamId> = None;
    let mut tended = Instant::now();
    // Until the receiver has seen enough and this process is killed.
    loop {
        if tended.elapsed().as_millis() > 100 {
            port.tend();
            tended = Instant::now();
        }
        if side.connection.is_none() && port.link_up() {
            side.connection =
                Some(
                    side.endpoint
                        .connect(Instant::now(), config.clone(), to, NAME)?,
                );
        }
        side.read()?;
        if let Some((_, connection)) = &mut side.connection {
            while let Some(event) = connection.poll() {
                match event {
                    Event::Connected => stream = connection.streams().open(Dir::Uni),
                    Event::ConnectionLost { reason } => return Err(reason.into()),
                    _ => {}
                }
            }
            if let Some(id) = stream {
                loop {
                    let mut whole = [chunk.clone()];
                    match connection.send_stream(id).write_chunks(&mut whole) {
                        Ok(_) => {}
                        Err(WriteError::Blocked) => break,
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        side.write();
    }
}

pub(crate) fn receive(plan: &Plan) -> Outcome<()> {
    let key = PrivatePkcs8KeyDer::from(std::fs::read(plan.folder.join("key"))?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate(&plan.folder)?], PrivateKeyDer::Pkcs8(key))?;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport()?);

    let (_port, datagrams) = open(plan, 2)?;
    let mut side = Side::new(datagrams, endpoint(Some(config))?);
    let mut stream: Option<StreamId> = None;
    let mut frame = vec![0_u8; 1 << 20];
    let (mut at, mut bytes) = (0, 0_usize);
    let mut began: Option<(Instant, Option<(Instant, usize)>)> = None;
    loop {
        side.read()?;
        if let Some((_, connection)) = &mut side.connection {
            while let Some(event) = connection.poll() {
                match event {
                    Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                        stream = connection.streams().accept(Dir::Uni);
                    }
                    Event::ConnectionLost { reason } => return Err(reason.into()),
                    _ => {}
                }
            }
            if let Some(id) = stream {
                let mut receiving = connection.recv_stream(id);
                let mut chunks = receiving.read(true)?;
                while let Ok(Some(chunk)) = chunks.next(64 << 10) {
                    let length = chunk.bytes.len();
                    frame[at..at + length].copy_from_slice(&chunk.bytes);
                    at = (at + length) % (frame.len() - (64 << 10));
                    bytes += length;
                }
                let _ = chunks.finalize();
            }
        }
        side.write();
        if bytes == 0 {
            continue;
        }
        match *began.get_or_insert_with(|| (Instant::now(), None)) {
            (start, None) if start.elapsed() >= WARM_UP => {
                began = Some((start, Some((Instant::now(), bytes))));
            }
            (_, Some((start, before))) if start.elapsed() >= plan.duration => {
                let rate = (bytes - before) as f64 / start.elapsed().as_secs_f64() / 1e6;
                println!("MB/s {rate}");
                return Ok(());
            }
            _ => {}
        }
    }
}
