//! Any bytes in the place of a peer that speaks TLS: nobody is known by them, no byte behind a record is
//! wanted, and no name is read out of what no certificate of ours says.
#![no_main]

use std::sync::{Arc, LazyLock};

use dwcp_dataplane::tls::names::{SCHEME, node_of, only_node, uri_of};
use dwcp_dataplane::tls::pipe::{Pipe, Records};
use libfuzzer_sys::fuzz_target;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Has no certificate: what comes before one is chosen is what a stranger's bytes reach.
#[derive(Debug)]
struct Nothing;

impl ResolvesServerCert for Nothing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

static SETTINGS: LazyLock<Arc<rustls::ServerConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Nothing));
    Arc::new(config)
});

fuzz_target!(|input: &[u8]| {
    records(input);
    connection(input);
    if let Ok(text) = std::str::from_utf8(input) {
        names(text);
    }
});

/// The next byte is always wanted, and never more than a record has.
fn records(mut input: &[u8]) {
    let mut records = Records::default();
    while !input.is_empty() {
        let wanted = records.wanted();
        assert!((1..=(1 << 14) + 256).contains(&wanted));
        let (part, rest) = input.split_at(wanted.min(input.len()));
        if records.pass(part).is_err() {
            return;
        }
        input = rest;
    }
}

fn connection(mut input: &[u8]) {
    let mut pipe = Pipe::accept(&SETTINGS).expect("a connection");
    let mut out = Vec::new();
    while !input.is_empty() {
        let (part, rest) = input.split_at(pipe.wanted().min(input.len()));
        let fed = pipe.feed(part);
        pipe.take_bytes(&mut out);
        assert!(!pipe.is_up(), "known without a certificate");
        assert!(out.len() < 1 << 16, "much is said to somebody unknown");
        if fed.is_err() {
            return;
        }
        input = rest;
    }
}

fn names(text: &str) {
    if let Some(name) = node_of(text) {
        assert_eq!(uri_of(name).as_deref(), Some(text));
    }
    if let Some(uri) = uri_of(text) {
        assert_eq!(node_of(&uri), Some(text));
        assert_eq!(uri.strip_prefix(SCHEME), Some(text));
    }
    let mut words = text.split(' ');
    let uris: Vec<&str> = words.by_ref().take(2).collect();
    let only = only_node(uris.iter().copied(), words);
    assert!(only.is_none() || uris.len() == 1);
}
