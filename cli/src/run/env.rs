//! Which variables a task sees: those it declares, and those that say where and on what machine it runs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_bytes::ByteBuf;
use vout::config::select_env;
use vout::task::EnvVar;

use crate::workspace::Surroundings;

/// Variables every task sees although nobody declares them, and that are in no key. A `*` stands for any
/// characters.
///
/// They name the user, the terminal, the machine and where tools keep their own things. What decides *what*
/// a tool produces (`NODE_ENV`, `CFLAGS`, `RUSTFLAGS`…) is not among them: a task has to declare it. The list
/// is explained in `docs/cli.md`.
pub(crate) const UNTRACKED: &[&str] = &[
    // The user and the session.
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PATH",
    "TMPDIR",
    "TMP",
    "TEMP",
    "TZ",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "XDG_*",
    "DBUS_SESSION_BUS_ADDRESS",
    "SSH_AUTH_SOCK",
    "GPG_TTY",
    "HOSTNAME",
    // The terminal and the display.
    "TERM",
    "TERM_PROGRAM",
    "TERM_PROGRAM_VERSION",
    "COLORTERM",
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    // The machine that builds.
    "CI",
    "GITHUB_ACTIONS",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    // The network.
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "ftp_proxy",
    "FTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    // Where tools are installed and keep their downloads.
    "CARGO_HOME",
    "RUSTUP_HOME",
    "GOPATH",
    "GOCACHE",
    "GOMODCACHE",
    "GOROOT",
    "JAVA_HOME",
    "GRADLE_USER_HOME",
    "NVM_DIR",
    "VOLTA_HOME",
    "FNM_*",
    "PNPM_HOME",
    "BUN_INSTALL",
    "COREPACK_HOME",
    "PYENV_ROOT",
    "VIRTUAL_ENV",
    "PIP_CACHE_DIR",
    "npm_config_cache",
    "npm_config_registry",
    "npm_config_userconfig",
    "npm_config_store_dir",
    "NPM_CONFIG_CACHE",
    "NPM_CONFIG_REGISTRY",
    "NPM_CONFIG_USERCONFIG",
    "NPM_CONFIG_STORE_DIR",
];

/// A task's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskEnv {
    /// Declared variables, sorted by name: part of the key.
    pub(crate) tracked: Vec<EnvVar>,
    /// All that the task sees, sorted by name.
    pub(crate) all: Vec<(ByteBuf, ByteBuf)>,
}

impl TaskEnv {
    /// Chooses from the surroundings what a task in `directory` sees: `declared` and `untracked` are names
    /// or patterns with `*`.
    ///
    /// A variable whose name is not UTF-8 is never seen: no configuration could declare it.
    pub(crate) fn select(
        surroundings: &Surroundings,
        declared: &[String],
        untracked: &[String],
        directory: &Path,
    ) -> Self {
        let present: BTreeMap<&str, &OsStr> = surroundings
            .env
            .iter()
            .filter_map(|(name, value)| Some((name.to_str()?, value.as_os_str())))
            .collect();
        let value = |name: &str| present.get(name).map(|value| ByteBuf::from(value.as_bytes()));
        let tracked: Vec<EnvVar> = select_env(declared, present.keys().copied())
            .into_iter()
            .map(|name| EnvVar { value: value(&name), name })
            .collect();
        let built_in: Vec<String> = UNTRACKED.iter().map(|name| (*name).to_owned()).collect();
        let names = [declared, untracked, &built_in].concat();
        let mut all: BTreeMap<String, ByteBuf> = select_env(&names, present.keys().copied())
            .into_iter()
            .filter_map(|name| Some((value(&name)?, name)))
            .map(|(value, name)| (name, value))
            .collect();
        all.insert("PWD".to_owned(), ByteBuf::from(directory.as_os_str().as_bytes()));
        let all = all.into_iter().map(|(name, value)| (ByteBuf::from(name), value)).collect();
        Self { tracked, all }
    }

    /// Returns the value of a variable that the task sees.
    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        let found = self.all.iter().find(|(key, _)| key.as_slice() == name.as_bytes());
        found.map(|(_, value)| OsStr::from_bytes(value))
    }

    /// Sets a variable that only the running task sees.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.all.retain(|(key, _)| key.as_slice() != name.as_bytes());
        self.all.push((ByteBuf::from(name.as_bytes()), ByteBuf::from(value.into())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(env: &[(&str, &str)]) -> Surroundings {
        let env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Surroundings { cwd: "/".into(), env }
    }

    fn names(env: &TaskEnv) -> Vec<String> {
        env.all.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
    }

    fn names_of(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_task_sees_what_it_declares_and_where_it_runs_and_nothing_else() {
        let around = surroundings(&[
            ("SECRET", "s"),
            ("NODE_ENV", "test"),
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("VITE_A", "1"),
            ("PWD", "/x"),
        ]);
        let env = TaskEnv::select(&around, &names_of(&["NODE_ENV", "VITE_*"]), &[], Path::new("/w/app"));
        assert_eq!(names(&env), ["LC_ALL", "NODE_ENV", "PATH", "PWD", "VITE_A"]);
        assert_eq!(env.get("PWD"), Some(OsStr::new("/w/app")));
        assert_eq!(env.get("SECRET"), None);
    }

    #[test]
    fn a_declared_variable_that_is_not_set_is_in_the_key_as_such() {
        let around = surroundings(&[("B_1", "1"), ("B_2", "2")]);
        let env = TaskEnv::select(&around, &names_of(&["C", "B_*", "A"]), &[], Path::new("/w"));
        let tracked: Vec<_> = env
            .tracked
            .iter()
            .map(|var| (var.name.as_str(), var.value.as_deref().map(Vec::as_slice)))
            .collect();
        let (one, two): (&[u8], &[u8]) = (b"1", b"2");
        assert_eq!(tracked, [("A", None), ("B_1", Some(one)), ("B_2", Some(two)), ("C", None)]);
    }

    #[test]
    fn an_untracked_variable_is_seen_but_not_in_the_key() {
        let around = surroundings(&[("TOKEN", "t")]);
        let env = TaskEnv::select(&around, &[], &names_of(&["TOKEN"]), Path::new("/w"));
        assert_eq!((names(&env), env.tracked), (vec!["PWD".to_owned(), "TOKEN".to_owned()], Vec::new()));
    }

    #[test]
    fn the_built_in_list_is_documented() {
        let document = include_str!("../../../docs/cli.md");
        let missing = UNTRACKED.iter().filter(|name| !document.contains(&format!("`{name}`")));
        assert_eq!(missing.collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    #[test]
    fn the_built_in_list_has_no_name_twice() {
        let mut sorted = UNTRACKED.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), UNTRACKED.len());
    }
}
