//! What the configuration takes, and what it says about what it does not take.

use super::*;
use hearth_model::{ErrorKind, Kind, error::chain};

fn config(file: &str, environment: &[(&str, &str)], options: &ServeOptions) -> Result<Config, ConfigError> {
    let environment = environment.iter().map(|(key, value)| ((*key).into(), (*value).into()));
    Config::from_sources(options, environment, Some((Path::new("/c.toml"), file)))
}

/// The whole of what a user would read.
fn refusal(file: &str, environment: &[(&str, &str)]) -> String {
    let error = config(file, environment, &ServeOptions::default()).expect_err("must be refused");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    format!("{} — {}", chain(&error), error.hint().unwrap_or_default())
}

#[test]
fn nothing_given_is_the_defaults() {
    let config = config("", &[], &ServeOptions::default()).expect("defaults");
    assert_eq!(config.listen.to_string(), "127.0.0.1:4973");
    assert_eq!(config.data_dir, Path::new("/var/lib/hearth"));
    assert_eq!(config.timeouts.boot(), Duration::from_secs(120));
    assert_eq!(config.auth.token_secret, None);
}

#[test]
fn command_line_before_environment_before_file() {
    let file = "listen = '127.0.0.1:1'\ndata_dir = '/file'\n[defaults]\nmemory = '1GB'\nvcpus = 2\n";
    let environment = [("HEARTH_LISTEN", "127.0.0.1:2"), ("HEARTH_DEFAULTS_VCPUS", "3"), ("HEARTH_URL", "x")];
    let options = ServeOptions { listen: Some("localhost:3".into()), ..ServeOptions::default() };
    let config = config(file, &environment, &options).expect("valid");
    assert_eq!(config.listen.to_string(), "127.0.0.1:3");
    assert_eq!(config.data_dir, Path::new("/file"));
    assert_eq!(config.defaults.vcpus, 3);
    assert_eq!(config.defaults.memory.mib(), 1024);
}

/// Each value differs from its default, and arrives by file and by environment alike.
#[test]
fn every_setting_is_read_from_the_file_and_from_the_environment() {
    let values = [
        "/x",
        "127.0.0.2:9",
        "json",
        "debug",
        "s3cret",
        "/nowhere/secret",
        "true",
        "/k",
        "/vmlinux",
        "none",
        "/q",
        "tcg",
        "/f",
        "trust",
        "off",
        "false",
        "user",
        "10.9.0.0/20",
        "3",
        "false",
        "80,53/udp",
        "192.0.2.1",
        "false",
        "5",
        "qemu",
        "512MB",
        "4",
        "2GB",
        "2.5",
        "3GB",
        "1.5",
        "0",
        "2 GB",
        "86400",
        "2MB",
        "5",
        "3MB",
        "1000",
        "9",
        "7",
        "8",
        "9",
    ];
    let defaults = format!("{:?}", config("", &[], &ServeOptions::default()).expect("defaults"));
    for (key, value) in KEYS.into_iter().zip(values) {
        let (section, name) = key.split_once('.').map_or(("", key), |(section, name)| (section, name));
        let file = if section.is_empty() {
            format!("{name} = \"{value}\"")
        } else {
            format!("[{section}]\n{name} = \"{value}\"")
        };
        let variable = format!("HEARTH_{}", key.replace('.', "_").to_uppercase());
        let from_file = config(&file, &[], &ServeOptions::default());
        let from_environment = config("", &[(&variable, value)], &ServeOptions::default());
        if key == "auth.token_secret_file" {
            for error in [from_file, from_environment] {
                assert!(error.expect_err("no such file").to_string().contains(value));
            }
            continue;
        }
        let (from_file, from_environment) = (from_file.expect(key), from_environment.expect(key));
        assert_eq!(format!("{from_file:?}"), format!("{from_environment:?}"), "{key}");
        assert_ne!(format!("{from_file:?}"), defaults, "{key} changed nothing");
    }
    let level = config("", &[("HEARTH_LOG", "trace")], &ServeOptions::default()).expect("valid").log.level;
    assert_eq!(level, "trace");
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_a_way_out() {
    for (file, environment, says) in [
        ("\n[defaults]\nmemry = 1", vec![], vec!["/c.toml:3", "defaults.memry", "defaults.memory"]),
        ("[default]\nmemory = 1", vec![], vec!["/c.toml:2", "default.memory", "defaults.memory"]),
        ("listen = 3\nlisten = 4", vec![], vec!["/c.toml:2", "duplicate"]),
        ("a = [", vec![], vec!["/c.toml:1"]),
        ("\n\nlisten = 'x'", vec![], vec!["/c.toml:3", "listen", "\"x\"", "127.0.0.1:4973"]),
        ("listen = ['127.0.0.1:1']", vec![], vec!["listen", "one value"]),
        ("defaults = 3", vec![], vec!["/c.toml:1", "defaults"]),
        ("", vec![("HEARTH_DEFAULTS_MEMRY", "1")], vec!["HEARTH_DEFAULTS_MEMRY", "HEARTH_DEFAULTS_MEMORY"]),
        ("", vec![("HEARTH_DEFAULTS_MEMORY", "12MB")], vec!["HEARTH_DEFAULTS_MEMORY", "too small"]),
        ("", vec![("HEARTH_DEFAULTS_VCPUS", "0")], vec!["1 to 32"]),
        ("", vec![("HEARTH_MEMORY_OVERSUBSCRIPTION", "0")], vec!["0.1 to 10000"]),
        ("", vec![("HEARTH_MEMORY_CAPACITY", "1MB")], vec!["HEARTH_MEMORY_CAPACITY", "less than"]),
        ("", vec![("HEARTH_QEMU_ACCEL", "hvf")], vec!["auto, kvm, tcg"]),
        ("", vec![("HEARTH_DATA_DIR", "here")], vec!["absolute"]),
        ("", vec![("HEARTH_LOG", "=x=y")], vec!["HEARTH_LOG", "level"]),
        ("", vec![("HEARTH_AUTH_TOKEN_SECRET", "")], vec!["empty"]),
    ] {
        let refusal = refusal(file, &environment);
        for part in says {
            assert!(refusal.contains(part), "{part:?} is not in {refusal:?}");
        }
    }
}

#[test]
fn without_a_secret_only_this_host_is_served() {
    for (listen, secret, allowed) in [
        ("127.0.0.1:1", false, true),
        ("[::1]:1", false, true),
        ("[::ffff:127.0.0.1]:1", false, true),
        ("0.0.0.0:1", false, false),
        ("[::]:1", false, false),
        ("192.0.2.1:1", false, false),
        ("0.0.0.0:1", true, true),
    ] {
        let result = check_exposure(listen.parse().expect("an address"), secret);
        assert_eq!(result.is_ok(), allowed, "{listen}");
    }
    let refusal = refusal("listen = '0.0.0.0:4973'", &[]);
    assert!(refusal.contains("0.0.0.0:4973") && refusal.contains("token_secret"), "{refusal}");
}

#[test]
fn a_secret_comes_from_a_file_without_its_line_end_and_is_never_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret");
    std::fs::write(&path, "hush\n").expect("written");
    let file = format!("listen = '0.0.0.0:1'\nauth.token_secret_file = {path:?}");
    let config = config(&file, &[], &ServeOptions::default()).expect("valid");
    assert_eq!(config.auth.token_secret, Some(Secret("hush".into())));
    assert!(!format!("{config:?}").contains("hush"));

    std::fs::write(&path, "\n").expect("written");
    assert!(refusal(&file, &[]).contains("empty"));
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let options = ServeOptions { config: Some("/no/such/file".into()), ..ServeOptions::default() };
    let error = Config::load(&options).expect_err("it is not there");
    assert!(error.to_string().contains("/no/such/file"), "{error}");
}

/// A row each, with its variable, and none that is not there.
#[test]
fn the_documentation_has_every_key() {
    let text = include_str!("../../../../docs/configuration.md");
    let rows: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(key, rest)| (key, rest.split(" |").next().unwrap_or_default()))
        .collect();
    for key in KEYS {
        let row = rows.iter().find(|(documented, _)| *documented == key);
        let (_, variable) = row.unwrap_or_else(|| panic!("docs/configuration.md: no row for {key}"));
        let wanted = format!("`HEARTH_{}`", key.replace('.', "_").to_uppercase());
        assert!(variable.contains(&wanted), "docs/configuration.md: {key} is set by {wanted}, not {variable}");
    }
    for (key, _) in rows {
        assert!(KEYS.contains(&key), "docs/configuration.md: there is no key {key}");
    }
}
