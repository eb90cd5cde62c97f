//! The API over TLS: who trusts its authority gets in, and nothing is said in clear.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api_support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use api_support::{Server, TOKEN, config, watchdog};
use dwcp_controlplane::tls::{self, TlsError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An authority, and a certificate of its for 127.0.0.1: authority, certificate and key.
fn issue(folder: &Path, name: &str) -> [PathBuf; 3] {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let put = |kind: &str, text: &str| {
        let path = folder.join(format!("{name}-{kind}.pem"));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    [
        put("ca", &issuer.pem()),
        put("cert", &certificate.pem()),
        put("key", &key.serialize_pem()),
    ]
}

fn client(authority: Option<&Path>) -> reqwest::Client {
    let tls = tls::client(authority).unwrap();
    let builder = reqwest::Client::builder().tls_backend_preconfigured(tls);
    builder.build().unwrap()
}

#[tokio::test]
async fn who_trusts_its_authority_gets_in_and_nothing_is_said_in_clear() {
    let folder = tempfile::tempdir().unwrap();
    let [ca, cert, key] = issue(folder.path(), "good");
    let [other, _, _] = issue(folder.path(), "other");
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let server = Server::start(folder.path(), &["--tls-cert", cert, "--tls-key", key]).await;
    let url = format!("https://{}/v1/link", server.address);
    let ask = |http: reqwest::Client| {
        let request = http.get(&url).bearer_auth(TOKEN).send();
        async move {
            watchdog(request)
                .await
                .map(|answer| answer.status().as_u16())
        }
    };
    assert_eq!(ask(client(Some(&ca))).await.unwrap(), 200);
    assert!(
        ask(client(Some(&other))).await.is_err(),
        "another authority"
    );
    assert!(ask(client(None)).await.is_err(), "no authority");
    let mut clear = TcpStream::connect(server.address).await.unwrap();
    let words =
        format!("GET /v1/link HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    clear.write_all(words.as_bytes()).await.unwrap();
    let mut told = Vec::new();
    let _ = watchdog(clear.read_to_end(&mut told)).await;
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(
        !told.contains("HTTP") && !told.contains("bandwidth"),
        "{told}"
    );
    assert_eq!(ask(client(Some(&ca))).await.unwrap(), 200, "and goes on");
    server.stop().await;
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let [ca, cert, key] = issue(folder.path(), "good");
    let [_, _, other_key] = issue(folder.path(), "other");
    let tls = |cert: &Path, key: &Path| {
        let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
        config(folder.path(), &["--tls-cert", cert, "--tls-key", key]).tls()
    };
    assert!(tls(&cert, &key).unwrap().is_some());
    assert!(matches!(tls(&cert, &other_key), Err(TlsError::Pair(_))));
    assert!(
        matches!(tls(&key, &key), Err(TlsError::File { .. })),
        "a key is no certificate"
    );
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = tls(&cert, &key).unwrap_err().to_string();
    assert!(open.contains("chmod 600"), "{open}");
    assert!(dwcp_controlplane::tls::client(Some(&ca)).is_ok());
    assert!(dwcp_controlplane::tls::client(Some(&folder.path().join("none"))).is_err());
}
