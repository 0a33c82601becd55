//! What a script costs: a choice that the operator writes, per connection, beside the same balancer
//! without one.
//!
//! Each balancer runs twice, plain and with its script, in the same alternating rounds; what counts
//! is the CPU that the script adds to a connection. The choice is the lesser loaded of two random
//! endpoints: a plugin here, Lua in HAProxy. nginx's JavaScript cannot see loads, so there it is a
//! random endpoint, which is less.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use pointsman_benches::processes::run_pointsman;

use crate::network::Network;
use crate::plans::{Plan, Traffic, free_address, words};

/// Names of balancers without and with their script.
pub(crate) const PAIRS: [[&str; 2]; 3] =
    [["pointsman", "pointsman+p2c"], ["haproxy", "haproxy+lua"], ["nginx", "nginx+js"]];

/// Plans for all of them, in the order of [`PAIRS`], a pair after the other.
pub(crate) fn plans(folder: &Path, endpoints: [SocketAddr; 2]) -> Result<Vec<Plan>> {
    fs::create_dir_all(folder)?;
    Ok(vec![
        pointsman(folder, endpoints, ("pointsman", "native = \"least-flows\""))?,
        pointsman(folder, endpoints, ("pointsman+p2c", "plugin = \"p2c.wasm\""))?,
        haproxy(folder, endpoints, ("haproxy", ["", ""]))?,
        haproxy(folder, endpoints, ("haproxy+lua", haproxy_script(folder)?))?,
        nginx(folder, endpoints, ("nginx", None))?,
        nginx(folder, endpoints, ("nginx+js", Some(nginx_script(folder)?)))?,
    ])
}

fn pointsman(
    folder: &Path,
    [one, two]: [SocketAddr; 2],
    (name, policy): (&'static str, &str),
) -> Result<Plan> {
    let address = free_address(&Network::loopback().balancers, Traffic::Connections)?;
    let file = |end: &str| folder.join(name).with_extension(end);
    let config = file("toml");
    fs::write(
        &config,
        format!(
            r#"workers = 1
[admin]
socket = "{socket}"
[[listeners]]
name = "scripts"
address = "{address}"
cluster = "scripts"
[[clusters]]
name = "scripts"
policy = "choice"
endpoints = [{{ address = "{one}" }}, {{ address = "{two}" }}]
[[policies]]
name = "choice"
{policy}
"#,
            socket = file("sock").display()
        ),
    )?;
    Ok(Plan { name, address, command: run_pointsman(&config)? })
}

/// What loads the script, and what calls it.
fn haproxy_script(folder: &Path) -> Result<[&'static str; 2]> {
    fs::write(
        folder.join("choice.lua"),
        r#"local names = { "one", "two" }
core.register_fetches("choice", function(txn)
    local first = math.random(2)
    local second = 3 - first
    local flows = function(number) return txn.f:srv_conn("scripts/" .. names[number]) end
    if flows(second) < flows(first) then return names[second] end
    return names[first]
end)
"#,
    )?;
    Ok(["lua-load choice.lua", "use-server %[lua.choice] if TRUE"])
}

fn haproxy(
    folder: &Path,
    [one, two]: [SocketAddr; 2],
    (name, [load, call]): (&'static str, [&str; 2]),
) -> Result<Plan> {
    let address = free_address(&Network::loopback().balancers, Traffic::Connections)?;
    let config = folder.join(name).with_extension("cfg");
    let load = load.replace("choice.lua", &folder.join("choice.lua").display().to_string());
    fs::write(
        &config,
        format!(
            "global
    nbthread 1
    maxconn 6000
    log /dev/null local0
    {load}
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend scripts
    bind {address} backlog 4096
    default_backend scripts
backend scripts
    balance leastconn
    {call}
    server one {one}
    server two {two}
"
        ),
    )?;
    Ok(Plan { name, address, command: words(&["haproxy", "-db", "-q", "-f"], &config) })
}

fn nginx_script(folder: &Path) -> Result<String> {
    let script = folder.join("choice.js");
    fs::write(
        &script,
        "function choice(s) { return Math.random() < 0.5 ? 'one' : 'two'; }
export default { choice };
",
    )?;
    Ok(format!("js_import choice from {};\n    js_set $choice choice.choice;", script.display()))
}

fn nginx(
    folder: &Path,
    [one, two]: [SocketAddr; 2],
    (name, script): (&'static str, Option<String>),
) -> Result<Plan> {
    let address = free_address(&Network::loopback().balancers, Traffic::Connections)?;
    let config = folder.join(name).with_extension("conf");
    let modules = ["ngx_stream_module", "ngx_stream_js_module"].map(|module| {
        let file = format!("/usr/lib/nginx/modules/{module}.so");
        if Path::new(&file).exists() { format!("load_module {file};\n") } else { String::new() }
    });
    let target = if script.is_some() { "$choice" } else { "both" };
    fs::write(
        &config,
        format!(
            "{modules}worker_processes 1;
daemon off;
pid {folder}/{name}.pid;
error_log {folder}/{name}.log error;
worker_rlimit_nofile 20000;
events {{ worker_connections 18000; }}
stream {{
    {script}
    upstream one {{ server {one}; }}
    upstream two {{ server {two}; }}
    upstream both {{ least_conn; server {one}; server {two}; }}
    server {{ listen {address} backlog=4096; tcp_nodelay on; proxy_pass {target}; }}
}}
",
            modules = modules.concat(),
            folder = folder.display(),
            script = script.unwrap_or_default(),
        ),
    )?;
    Ok(Plan { name, address, command: words(&["nginx", "-c"], &config) })
}
