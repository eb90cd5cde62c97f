use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::load(file.path())
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let error = load("nodename = \"a\"").unwrap_err().to_string();
    assert!(error.contains("nodename"), "{error}");
}

#[test]
fn the_environment_wins_over_the_file_and_flags_over_both() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "node = \"a\"\nlanes_max = 16\n").unwrap();
    let read = |variables: &[(&str, &str)], flags: &[&str]| {
        let variables = variables
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let layers = Config::layers(file.path(), variables, &flags)?;
        Config::of(&layers, file.path())
    };
    let variables = [
        ("DWCP_DATAPLANE_CONFIG", "/elsewhere"),
        ("DWCP_DATAPLANE_LANES_MAX", "32"),
        ("DWCP_DATAPLANE_LISTEN", "10.0.0.1:4790"),
        ("DWCP_DATAPLANE_RDMA__LISTEN", "10.0.0.2:4791"),
    ];
    let config = read(&variables, &["listen=10.0.0.3:4790"]).unwrap();
    assert_eq!((config.node.as_str(), config.lanes_max), ("a", 32));
    assert_eq!(config.listen.to_string(), "10.0.0.3:4790");
    assert_eq!(config.rdma.unwrap().listen.to_string(), "10.0.0.2:4791");
    let unknown = read(&[("DWCP_DATAPLANE_LANE_MAX", "1")], &[])
        .unwrap_err()
        .to_string();
    assert!(
        unknown.contains("`lane_max`") && unknown.contains("DWCP_DATAPLANE_LANE_MAX"),
        "{unknown}"
    );
    let wrong = read(&[], &["lanes_max=many"]).unwrap_err().to_string();
    assert!(wrong.contains("--set lanes_max"), "{wrong}");
    assert!(read(&[], &["lanes_max=0"]).is_err());
}

#[test]
fn what_is_shown_is_read_back_as_the_same() {
    let text = "cores = [0]\n[dpdk]\ndevice = \"af_xdp:eth1\"\naddress = \"10.9.0.1/24\"\n[[incoming]]\ntarget = \"a\"\nconnect = \"/a\"\n";
    let config = load(text).unwrap();
    let shown = dwcp_service::show::show(&config, |_| Default::default())
        .unwrap()
        .to_string();
    assert!(
        shown.contains("dpdk.address = \"10.9.0.1/24\"") && shown.contains("lanes_v3 = 16"),
        "{shown}"
    );
    assert_eq!(
        format!("{:?}", load(&shown).unwrap()),
        format!("{config:?}")
    );
}

#[test]
fn a_value_outside_its_limits_is_refused_by_name() {
    let error = load("max_version = 2").unwrap_err().to_string();
    assert!(error.contains("max_version"), "{error}");
    assert!(load("window_limit_bytes = 1").is_err());
    let error = load("memory_limit_bytes = 100000000").unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("memory_limit_bytes = 100000000") && error.contains("256 MiB"),
        "{error}"
    );
    let limit = |text| load(text).unwrap().memory_limit_bytes;
    assert_eq!(limit(""), 2_000_000_000);
    assert_eq!(limit("memory_limit_bytes = 268435456"), 256 << 20);
    assert!(load("lanes_v3 = 0").is_err());
    assert!(load("lanes_min = 9\nlanes_max = 8").is_err());
    assert!(load("lanes_max = 513").is_err());
    let offered = |text| load(text).unwrap().lanes_offered();
    assert_eq!(offered(""), 64);
    assert_eq!(offered("lanes_max = 512\nsessions_max = 2"), 512);
    assert_eq!(offered("lanes_max = 512\nsessions_max = 64"), 16);
    assert!(load("lanes_min = 32\nlanes_max = 512\ntcp_congestion = \"bbr\"").is_ok());
    assert!(load("tcp_congestion = \"vegas\"").is_err());
}

#[test]
fn the_tls_table_is_complete_or_refused_by_name() {
    let files = "[tls]\nca = \"a\"\ncert = \"b\"\nkey = \"c\"\n";
    let config = load(files).unwrap();
    assert!(!config.uses_psk() && config.tls.unwrap().required);
    let some = format!("{files}required = false\ntrusted_networks = [\"10.0.0.0/8\"]\n");
    assert!(load(&some).unwrap().uses_psk());
    for (wrong, named) in [
        ("[tls]\nca = \"a\"\ncert = \"b\"\n".to_owned(), "key"),
        (format!("{files}cipher = \"x\"\n"), "cipher"),
        (format!("{files}required = false\n"), "trusted_networks"),
        (
            format!("{files}trusted_networks = [\"10.0.0.0\"]\n"),
            "10.0.0.0",
        ),
    ] {
        let error = load(&wrong).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn the_baseline_table_needs_a_folder_and_some_room() {
    let baseline = load("[baseline]\ndir = \"/var/lib/dwcp/baseline\"\n")
        .unwrap()
        .baseline;
    let limits = baseline.unwrap().limits();
    assert_eq!((limits.bytes_max, limits.migrations_max), (2 << 30, 2));
    assert!(load("").unwrap().baseline.is_none());
    for (wrong, named) in [
        ("[baseline]\nmax_bytes = 7\n", "dir"),
        ("[baseline]\ndir = \"here\"\n", "baseline.dir"),
        (
            "[baseline]\ndir = \"/x\"\nmax_bytes = 7\n",
            "baseline.max_bytes",
        ),
        ("[baseline]\ndir = \"/x\"\nsize = 7\n", "size"),
    ] {
        let error = load(wrong).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn a_key_others_can_read_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "0123456789abcdef0123456789abcdef\n").unwrap();
    let config = Config {
        psk_file: file.path().to_owned(),
        ..Config::default()
    };
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(
        config.read_psk(),
        Err(ConfigError::KeyMode { .. })
    ));
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(config.read_psk().unwrap().len(), 32);
    std::fs::write(file.path(), "short").unwrap();
    assert!(matches!(
        config.read_psk(),
        Err(ConfigError::KeyShort { found: 5, .. })
    ));
}
