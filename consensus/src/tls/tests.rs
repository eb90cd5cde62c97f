//! Real connections between members with certificates of the same and of other authorities.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Credentials, Dialer, Signature, SignatureError, TlsFiles, listen};
use crate::chain::{Chain, Identity, Tuning};
use crate::command::{Command, Decision};
use crate::conf::{Peer, Tokio};
use crate::disk::Folder;
use crate::replicator::Replicator;
use crate::throw::{Notary, Refusal, Statement, Throw};
use crate::wire::{Answer, Change, Envelope, Message, Wire, WireError};

struct Authority {
    folder: PathBuf,
    key: KeyPair,
    params: CertificateParams,
}

impl Authority {
    fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.clone().self_signed(&key).unwrap().pem();
        std::fs::write(folder.join("ca.pem"), pem).unwrap();
        Self {
            folder: folder.to_owned(),
            key,
            params,
        }
    }

    fn issue(&self, name: &str) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uri = format!("dwcp://node/{name}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let issuer = Issuer::from_params(&self.params, &self.key);
        let pem = params.signed_by(&key, &issuer).unwrap().pem();
        let files = TlsFiles {
            ca: self.folder.join("ca.pem"),
            cert: self.folder.join(format!("{name}.pem")),
            key: self.folder.join(format!("{name}.key")),
            crl: None,
        };
        std::fs::write(&files.cert, pem).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600)).unwrap();
        files
    }
}

async fn member(
    folder: &Path,
    authority: &Authority,
    id: u64,
    listener: TcpListener,
    founders: &BTreeMap<u64, Peer>,
    stop: watch::Receiver<bool>,
) -> Arc<Chain<Tokio, Folder>> {
    let name = format!("node{id}");
    let credentials = Credentials::read(&authority.issue(&name)).unwrap();
    let identity = Identity {
        id,
        cluster: "test".to_owned(),
        me: founders[&id].clone(),
        founders: founders.clone(),
    };
    let disk = Folder::open(&folder.join(&name)).unwrap();
    let wire = Arc::new(Dialer::new(credentials.clone()));
    let chain = Chain::open(identity, disk, wire, Tuning::default(), Arc::new(|_, _| {}))
        .await
        .unwrap();
    let chain = Arc::new(chain);
    tokio::spawn(listen(listener, credentials, chain.clone(), stop));
    chain
}

fn decision(text: &str) -> Command {
    Command::Record {
        decision: Decision {
            at_unix_ms: 1,
            by: "test".to_owned(),
            text: text.to_owned(),
            about: String::new(),
        },
    }
}

const WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn three_members_agree_and_strangers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ours"));
    let (_stopper, stop) = watch::channel(false);
    let mut listeners = Vec::new();
    let mut founders = BTreeMap::new();
    for id in 1..=3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Peer {
            name: format!("node{id}"),
            address: listener.local_addr().unwrap().to_string(),
        };
        founders.insert(id, peer);
        listeners.push(listener);
    }
    let mut members = Vec::new();
    for (id, listener) in (1..).zip(listeners) {
        members.push(
            member(
                folder.path(),
                &authority,
                id,
                listener,
                &founders,
                stop.clone(),
            )
            .await,
        );
    }
    members[0].submit(decision("one"), WITHIN).await.unwrap();
    members[1].submit(decision("two"), WITHIN).await.unwrap();
    let state = members[2].read(WITHIN).await.unwrap();
    assert_eq!(state.decisions_total, 2);

    let epoch = members[1].seal(founders.clone(), WITHIN).await.unwrap();
    assert_eq!(epoch, 2);
    members[2].submit(decision("three"), WITHIN).await.unwrap();
    let state = members[0].read(WITHIN).await.unwrap();
    assert_eq!((state.epoch, state.decisions_total), (2, 3));

    let heir = members[0].status().leader.unwrap() % 3 + 1;
    members[0]
        .change(Change::Transfer(heir), WITHIN)
        .await
        .unwrap();
    for _ in 0..400 {
        if members.iter().all(|it| it.status().leader == Some(heir)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(members[2].status().leader, Some(heir));

    let ping = |name: &str| Envelope {
        cluster: "test".to_owned(),
        from: 9,
        sender: Peer {
            name: name.to_owned(),
            address: String::new(),
        },
        to: 1,
        epoch: 2,
        message: Message::Ping,
    };
    let ours = Dialer::new(Credentials::read(&authority.issue("node9")).unwrap());
    let answer = ours.ask(&founders[&1], ping("node9")).await;
    assert!(matches!(answer, Ok(Answer::Here)), "{answer:?}");
    let lied = ours.ask(&founders[&1], ping("node2")).await;
    assert!(
        matches!(lied, Err(WireError::Unreachable { .. })),
        "{lied:?}"
    );
    let elsewhere = Peer {
        name: "node2".to_owned(),
        ..founders[&1].clone()
    };
    let wrong = ours.ask(&elsewhere, ping("node9")).await;
    assert!(matches!(wrong, Err(WireError::Refused { .. })), "{wrong:?}");
    let others = Authority::new(&folder.path().join("others"));
    let stranger = Dialer::new(Credentials::read(&others.issue("node9")).unwrap());
    let refused = stranger.ask(&founders[&1], ping("node9")).await;
    assert!(
        matches!(refused, Err(WireError::Refused { .. })),
        "{refused:?}"
    );

    let mut plain = TcpStream::connect(&founders[&1].address).await.unwrap();
    plain.write_all(&[0xff; 4096]).await.unwrap();
    let still = ours.ask(&founders[&1], ping("node9")).await;
    assert!(matches!(still, Ok(Answer::Here)), "{still:?}");
}

#[tokio::test]
async fn a_length_beyond_the_limit_takes_no_memory() {
    let budget = tokio::sync::Semaphore::new(4);
    let mut long: &[u8] = &u32::MAX.to_le_bytes();
    let read = super::frame::read::<Envelope>(&mut long, &budget).await;
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    let mut cut: &[u8] = &[100, 0, 0, 0, b'{'];
    let read = super::frame::read::<Envelope>(&mut cut, &budget).await;
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(budget.available_permits(), 4);
}

#[test]
fn a_key_that_others_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let files = authority.issue("node1");
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Credentials::read(&files).err().unwrap().to_string();
    assert!(error.contains("chmod 600"), "{error}");
}

#[test]
fn a_signed_throw_is_its_nodes_and_nobody_elses() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ours"));
    let read =
        |authority: &Authority, name: &str| Credentials::read(&authority.issue(name)).unwrap();
    let (first, second) = (read(&authority, "node1"), read(&authority, "node2"));
    let throw = Throw {
        cluster: "test".to_owned(),
        node: "node1".to_owned(),
        number: 7,
        at_unix_ms: 1,
        by: "operator".to_owned(),
    };
    let good = throw.clone().sign(&first).unwrap();
    second.vouches(&good).unwrap();

    let text = serde_json::to_string(&good).unwrap();
    assert_eq!(serde_json::from_str::<Statement>(&text).unwrap(), good);
    for altered in [
        Throw {
            number: 8,
            ..throw.clone()
        },
        Throw {
            cluster: "other".to_owned(),
            ..throw.clone()
        },
        Throw {
            by: "nobody".to_owned(),
            ..throw.clone()
        },
        // The same letters, cut elsewhere.
        Throw {
            cluster: "testn".to_owned(),
            node: "ode1".to_owned(),
            ..throw.clone()
        },
    ] {
        let signature = good.signature.clone();
        let forged = Statement {
            throw: altered,
            signature,
        };
        let refused = second.vouches(&forged);
        assert_eq!(refused, Err(Refusal::Signature(SignatureError::Forged)));
    }
    let for_another = throw.clone().sign(&second).unwrap();
    assert!(matches!(
        first.vouches(&for_another),
        Err(Refusal::Another { .. })
    ));

    let others = Authority::new(&folder.path().join("others"));
    let stranger = throw.clone().sign(&read(&others, "node1")).unwrap();
    let refused = second.vouches(&stranger);
    assert!(
        matches!(
            refused,
            Err(Refusal::Signature(SignatureError::Certificate(_)))
        ),
        "{refused:?}"
    );
    let cases: [fn(&mut Signature); 5] = [
        |signature| signature.certificates.clear(),
        |signature| signature.certificates = vec![signature.certificates[0].clone(); 5],
        |signature| signature.certificates[0] = "zz".to_owned(),
        |signature| signature.bytes = "00".repeat(600),
        |signature| signature.scheme = 0,
    ];
    for spoil in cases {
        let mut spoilt = good.clone();
        spoil(&mut spoilt.signature);
        let refused = second.vouches(&spoilt);
        assert!(
            matches!(
                refused,
                Err(Refusal::Signature(SignatureError::Malformed(_)))
            ),
            "{refused:?}"
        );
    }
}
