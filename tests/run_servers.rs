//! Servers and their clients on the loopback interface, in one guest, in two, and one native and one a guest.

mod common {
    pub mod bounded;
    pub mod cli;
    pub mod servers;
}

use common::servers::{Server, address, compare, write};
use common::{bounded, cli};
use nix::sys::signal::Signal;
use std::path::Path;

/// Natively; and under systrap in every mode, with the other side native and a guest.
const SIDES: [(Option<&str>, Option<&str>); 5] = [
    (None, None),
    (Some(cli::MODES[0]), Some(cli::MODES[0])),
    (Some(cli::MODES[1]), Some(cli::MODES[1])),
    (Some(cli::MODES[1]), None),
    (None, Some(cli::MODES[1])),
];

/// What a program that has to end well printed.
fn printed(mode: Option<&str>, program: &str, args: &[&str]) -> String {
    let output = bounded::output(bounded::command(mode, &cli::program(program), args), b"");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{mode:?} {program} {args:?}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}

#[test]
fn python_serves_curl_in_another_guest_until_it_is_ended() {
    for (server_mode, client_mode) in SIDES {
        let directory = tempfile::tempdir_in(cli::scratch()).expect("a directory");
        std::fs::write(directory.path().join("page"), cli::text(700_000)).expect("a file");
        let ip = address().ip().to_string();
        let args = ["-u", "-m", "http.server", "0", "--bind", &ip];
        let server = Server::start(server_mode, &cli::python(), &args, directory.path());
        // "Serving HTTP on 127.0.0.1 port 35719 (http://127.0.0.1:35719/) ..."
        let said = server.line_with("Serving HTTP on");
        let url = said.split_once('(').and_then(|(_, rest)| rest.split_once(')')).expect("an address").0;
        let page = printed(client_mode, "curl", &["-sS", &format!("{url}page")]);
        assert!(
            page.as_bytes() == cli::text(700_000),
            "{server_mode:?} {client_mode:?}: {} bytes",
            page.len()
        );
        let head = printed(client_mode, "curl", &["-sSI", &format!("{url}none")]);
        assert!(head.starts_with("HTTP/1.0 404"), "{server_mode:?} {client_mode:?}: {head}");
        server.line_with("\"GET /page HTTP/1.1\" 200");
        // Not SIGINT: who starts these tests in the background has it ignored.
        server.signal(Signal::SIGTERM);
        assert_eq!(server.end(), 128 + Signal::SIGTERM as i32, "{server_mode:?}");
    }
}

#[test]
fn redis_and_its_benchmark_in_two_guests() {
    for (server_mode, client_mode) in SIDES {
        let directory = tempfile::tempdir_in(cli::scratch()).expect("a directory");
        let at = address();
        let (ip, port) = (at.ip().to_string(), at.port().to_string());
        let args = ["--bind", &ip, "--port", &port, "--save", ""];
        let server = Server::start(server_mode, &cli::program("redis-server"), &args, directory.path());
        server.line_with("Ready to accept connections");
        let at = ["-h", ip.as_str(), "-p", port.as_str()];
        let ask = |words: &[&str]| printed(client_mode, "redis-cli", &[&at, words].concat());
        let bench = [&at[..], &["-t", "set,incr", "-n", "3000", "-c", "20", "--csv"]].concat();
        let figures = printed(client_mode, "redis-benchmark", &bench);
        assert_eq!(figures.lines().count(), 3, "{server_mode:?} {client_mode:?}: {figures}");
        assert_eq!(ask(&["get", "counter:__rand_int__"]), "3000\n", "{server_mode:?} {client_mode:?}");
        assert_eq!(ask(&["dbsize"]), "2\n");
        ask(&["shutdown", "nosave"]);
        server.line_with("Redis is now ready to exit");
        assert_eq!(server.end(), 0, "{server_mode:?}");
    }
}

#[test]
fn redis_and_its_benchmark_over_tcp_in_one_guest() {
    let _ = (cli::program("redis-server"), cli::program("redis-cli"), cli::program("redis-benchmark"));
    let script = "redis-server --bind $1 --port $2 --save '' >log & s=$!; trap 'kill -9 $s 2>/dev/null' EXIT\n\
        r=\"redis-cli -h $1 -p $2\"; until $r ping 2>/dev/null | grep -q PONG; do kill -0 $s || exit 1; sleep 0.05; done\n\
        redis-benchmark -h $1 -p $2 -t set,incr,lpush -n 5000 -c 30 -P 4 --threads 2 --csv >figures || cat figures\n\
        wc -l <figures; $r get counter:__rand_int__; $r llen mylist; $r shutdown nosave; wait $s; echo ended $?; trap - EXIT";
    let at = address();
    let (ip, port) = (at.ip().to_string(), at.port().to_string());
    let native = compare(&cli::program("sh"), &["-c", script, "sh", &ip, &port], &|_| ());
    assert_eq!(String::from_utf8_lossy(&native.stdout), "4\n5000\n5000\nended 0\n");
}

/// A server with two workers at an address; the error log has to stay empty.
fn nginx(directory: &Path, at: &str) {
    std::fs::create_dir(directory.join("www")).expect("a directory");
    write(directory, "www/index.html", "a small page\n");
    std::fs::write(directory.join("www/big"), cli::noise(300_000)).expect("a file");
    let conf = format!(
        "daemon off; worker_processes 2; pid nginx.pid; error_log errors; events {{ worker_connections 256; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 1000000; client_body_temp_path t1; proxy_temp_path t2;\n\
         fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5; server {{ listen {at}; root www; }} }}\n",
    );
    write(directory, "nginx.conf", &conf);
}

#[test]
fn nginx_under_wrk() {
    let _ = (cli::program("nginx"), cli::program("wrk"), cli::program("curl"));
    let at = address().to_string();
    // How many requests fit is the machine's affair; that none fails is not.
    let script = "nginx -p $PWD -e $PWD/errors -c nginx.conf & p=$!; trap 'kill -TERM $p 2>/dev/null' EXIT\n\
        until curl -s -o page http://$1/; do kill -0 $p || exit 1; sleep 0.05; done; cat page\n\
        for path in / /big /none; do wrk -t 2 -c 16 -d 1 --timeout 60 http://$1$path >log || cat log\n\
        n=$(sed -n 's/ *\\([0-9]*\\) requests in.*/\\1/p' log); [ \"${n:-0}\" -gt 20 ] && echo enough || cat log; grep -E 'Socket errors' log; grep -c Non-2xx log; done\n\
        curl -s http://$1/big | sha256sum; trap - EXIT; kill -QUIT $p; wait $p; echo ended $?; grep -v 'No such file' errors";
    let script = format!("{script}; true");
    let native =
        compare(&cli::program("bash"), &["-c", &script, "bash", &at], &|directory| nginx(directory, &at));
    let text = String::from_utf8_lossy(&native.stdout);
    assert!(text.starts_with("a small page\nenough\n0\nenough\n0\nenough\n1\n"), "{text}");
    assert!(text.ends_with("ended 0\n"), "{text}");
}

#[test]
fn addresses_routes_and_names_are_the_hosts() {
    cli::program("ip");
    // Some addresses are leased, and the time that is left goes by.
    let script = "ip addr | sed 's/_lft [0-9]*sec/_lft N/g'; ip -o link; ip route; ip -6 route; ip rule; ip route get 127.0.0.1";
    let native = compare(&cli::program("sh"), &["-c", script], &|_| ());
    assert!(String::from_utf8_lossy(&native.stdout).contains("127.0.0.1/8"));
    cli::program("getent");
    let script = "getent passwd root; getent group root; getent services http/tcp; getent protocols tcp; getent hosts localhost; \
        getent ahosts 127.0.0.1; getent passwd nobody-of-that-name || echo $?";
    compare(&cli::program("sh"), &["-c", script], &|_| ());
}
