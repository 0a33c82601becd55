//! Looks up who may ask and change a running balancer, and where.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::findings::Findings;
use crate::admin::{TlsProblem, TlsServer, Token};
use crate::config::{Admin, Config, Tls};
use crate::privileges::{RunAs, find_group};

/// The path of a Unix socket must fit into 108 bytes with its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Who may ask a balancer, and what of.
#[derive(Debug)]
pub struct AdminPlan {
    /// Who may write to the Unix socket: the bits of its mode.
    pub socket_mode: u32,
    /// The socket's group, if it is not the process'.
    pub socket_group: Option<u32>,
    /// What whoever comes to the HTTP address must know.
    pub token: Option<Token>,
    /// What is shown to whoever comes there.
    pub tls: Option<TlsServer>,
}

pub(super) fn resolve(admin: &Admin, findings: &mut Findings) -> AdminPlan {
    for (key, is_given) in
        [("token_file", admin.token_file.is_some()), ("tls", admin.tls.is_some())]
    {
        if is_given && admin.http.is_none() {
            let message = "is for admin.http; write that too, or leave this out";
            findings.add(format!("admin.{key}"), message);
        }
    }
    let token = admin.token_file.as_ref().and_then(|file| {
        let read = Token::read(file);
        read.map_err(|problem| findings.add("admin.token_file", problem)).ok()
    });
    let group = admin.socket_group.as_ref().and_then(|name| {
        find_group(name).map_err(|problem| findings.add("admin.socket_group", problem)).ok()
    });
    AdminPlan {
        socket_mode: mode(&admin.socket_mode, findings),
        socket_group: group,
        token,
        tls: admin.tls.as_ref().and_then(|tls| self::tls(tls, findings)),
    }
}

/// Whom the process becomes once everything is bound.
pub(super) fn run_as(config: &Config, findings: &mut Findings) -> Option<RunAs> {
    let group = config
        .group
        .as_ref()
        .and_then(|name| find_group(name).map_err(|problem| findings.add("group", problem)).ok());
    let Some(name) = &config.user else {
        if config.group.is_some() {
            findings.add("group", "is for a user; write `user` too, or leave this out");
        }
        return None;
    };
    let found = RunAs::find(name).map_err(|problem| findings.add("user", problem)).ok()?;
    Some(RunAs { group: group.unwrap_or(found.group), ..found })
}

pub(super) fn socket(path: &Path, findings: &mut Findings) -> PathBuf {
    if path.as_os_str().is_empty() {
        findings
            .add("admin.socket", "is empty; write a path, such as \"/run/pointsman/admin.sock\"");
    } else if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        findings.add(
            "admin.socket",
            format!(
                "is longer than the {SOCKET_PATH_BYTES_MAX} bytes of a socket's path; shorten it"
            ),
        );
    }
    path.to_owned()
}

/// Whoever may write to the socket may do everything, so that is never everybody.
fn mode(text: &str, findings: &mut Findings) -> u32 {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    let advice = match mode {
        None => "is no mode; write \"0600\", or \"0660\" for a group too",
        Some(mode) if mode & 0o007 != 0 => {
            "lets everybody change everything; write \"0600\", or \"0660\" with socket_group"
        }
        Some(mode) => return mode,
    };
    findings.add("admin.socket_mode", format!("\"{text}\" {advice}"));
    0o600
}

pub(super) fn http(text: &String, admin: &Admin, findings: &mut Findings) -> SocketAddr {
    let address = findings.address("admin.http", Some(text));
    let is_guarded = admin.token_file.is_some() && admin.tls.is_some();
    if !address.ip().is_loopback() && text.parse() == Ok(address) && !is_guarded {
        findings.add(
            "admin.http",
            format!(
                "{address} can be reached from outside; use a loopback address, such as \
                 \"127.0.0.1:{}\", or give it a token_file and tls",
                address.port()
            ),
        );
    }
    address
}

fn tls(tls: &Tls, findings: &mut Findings) -> Option<TlsServer> {
    let mut file = |name: &str, file: &Option<PathBuf>| {
        let key = format!("admin.tls.{name}");
        if file.is_none() {
            findings.add(key, "is missing; write the path of a PEM file");
        }
        file.clone()
    };
    let (cert, key) = (file("cert_file", &tls.cert_file), file("key_file", &tls.key_file));
    match TlsServer::read(&cert?, &key?) {
        Ok(server) => return Some(server),
        Err(TlsProblem::Cert(problem)) => findings.add("admin.tls.cert_file", problem),
        Err(TlsProblem::Key(problem)) => findings.add("admin.tls.key_file", problem),
    }
    None
}
