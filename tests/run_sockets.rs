//! Programs that talk through sockets and System V IPC: what they see of each other is what they see natively.

mod common {
    pub mod bounded;
    pub mod cli;
    pub mod parts;
}

use common::{bounded, cli, parts};
use std::path::Path;
use std::process::Output;

/// Runs a program in an empty directory natively and in every mode; it has to succeed and to say something.
fn compare(program: &Path, args: &[&str], prepare: &dyn Fn(&Path)) -> Output {
    let native = bounded::compare_in(cli::MODES.as_slice(), program, args, b"", prepare);
    assert_eq!(native.status.code(), Some(0), "{}", String::from_utf8_lossy(&native.stderr));
    assert!(!native.stdout.is_empty(), "{args:?} says nothing");
    native
}

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).expect("the directory takes it");
}

#[test]
fn sockets_of_every_kind() {
    parts::compare("sockets");
}

#[test]
fn system_v_ipc_and_message_queues() {
    parts::compare_program("ipc", &cli::fixture("ipc", &["-lrt"]));
}

#[test]
fn python_asyncio_and_http() {
    let script = r#"
import asyncio, http.server, multiprocessing, os, socket, threading, urllib.request
async def handle(reader, writer):
    writer.write(b"echo " + await reader.readline()); await writer.drain(); writer.close()
async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async def client(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"%d\n" % number); answer = await reader.read(); writer.close(); return answer
    print(sorted(await asyncio.gather(*map(client, range(50)))))
    unix = await asyncio.start_unix_server(handle, "asyncio.sock")
    reader, writer = await asyncio.open_unix_connection("asyncio.sock")
    writer.write(b"unix\n"); print(await reader.read()); writer.close()
asyncio.run(main())
open("page", "w").write("the page " * 100000)
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
threading.Thread(target=server.serve_forever, daemon=True).start()
for name in ["page", "page", "none"]:
    try: print(len(urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{name}").read()))
    except urllib.error.HTTPError as error: print(error)
server.shutdown()
def child(pipe, connection):
    connection.send(b"from the child"); pipe.send([1, "two"]); pipe.close()
one, two = multiprocessing.Pipe(); a, b = socket.socketpair()
process = multiprocessing.get_context("fork").Process(target=child, args=(two, b)); process.start()
print(one.recv(), a.recv(100)); process.join(); print(process.exitcode)
print(socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM))
"#;
    compare(&cli::python(), &["-c", script], &|_| ());
}

#[test]
fn go_serves_http_to_itself() {
    let source = r#"package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %d", r.Method, len(body))
	})
	go http.Serve(listener, nil)
	var group sync.WaitGroup
	answers := make([]string, 20)
	for i := range answers {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			answer, err := http.Post("http://"+listener.Addr().String(), "text/plain", strings.NewReader(strings.Repeat("x", i*5000)))
			if err != nil {
				panic(err)
			}
			text, _ := io.ReadAll(answer.Body)
			answer.Body.Close()
			answers[i] = string(text)
		}(i)
	}
	group.Wait()
	fmt.Println(answers)
}
"#;
    let directory = cli::scratch();
    write(directory, "serve.go", source);
    let program = directory.join("serve");
    let mut build = std::process::Command::new(cli::program("go"));
    let built = build.arg("build").arg("-o").arg(&program).arg(directory.join("serve.go")).status();
    assert!(built.expect("go starts").success());
    compare(&program, &[], &|_| ());
}

#[test]
fn node_serves_http_and_talks_to_children() {
    let script = r#"
const http = require('http'), net = require('net'), { execFile } = require('child_process');
const server = http.createServer((request, answer) => {
  let length = 0;
  request.on('data', data => length += data.length);
  request.on('end', () => answer.end(`${request.method} ${request.url} ${length}`));
});
server.listen(0, '127.0.0.1', async () => {
  const { port } = server.address();
  const one = number => new Promise((good, bad) => {
    const request = http.request({ port, host: '127.0.0.1', path: '/' + number, method: 'POST' }, answer => {
      let text = ''; answer.on('data', data => text += data); answer.on('end', () => good(text));
    });
    request.on('error', bad); request.end('x'.repeat(number * 3000));
  });
  console.log(await Promise.all([...Array(30).keys()].map(one)));
  execFile('echo', ['from a child'], (error, text) => {
    process.stdout.write(text);
    const echo = net.createServer(peer => peer.pipe(peer)).listen('unix.sock', () => {
      const client = net.connect('unix.sock', () => client.end('over a path'));
      client.on('data', data => console.log(data.toString()));
      client.on('end', () => { echo.close(); server.close(); });
    });
  });
});
"#;
    compare(&cli::program("node"), &["-e", script], &|_| ());
}

#[test]
fn redis_and_its_clients_in_one_guest() {
    cli::program("redis-benchmark");
    cli::program("redis-server");
    // By path: ports of the three runs cannot meet.
    let script = "redis-server --port 0 --unixsocket $PWD/redis.sock --save '' --daemonize no --logfile log &\n\
        r='redis-cli -s redis.sock'; until $r ping 2>/dev/null | grep -q PONG; do sleep 0.05; done\n\
        $r set key value; $r get key; $r incr count; redis-benchmark -s redis.sock -t set,get,lpush -n 2000 -c 10 -q >speeds; grep -c 'requests per second' speeds || true\n\
        $r dbsize; seq 500 | sed 's/.*/SET k& &/' | $r --pipe | tail -n 1; $r dbsize; $r shutdown nosave; wait; echo ended $?";
    compare(&cli::program("sh"), &["-c", script], &|_| ());
}

#[test]
fn nginx_serves_curl() {
    cli::program("nginx");
    cli::program("curl");
    let script = "nginx -p $PWD -e $PWD/errors -c nginx.conf & p=$!; c='curl -s --unix-socket web.sock'\n\
        until [ -S web.sock ] && $c -o /dev/null http://localhost/; do sleep 0.05; done\n\
        $c http://localhost/big | sha256sum; $c -o /dev/null -w '%{http_code}\\n' http://localhost/none\n\
        for i in 1 2 3 4; do $c http://localhost/big >got$i & done; wait $(jobs -p | grep -vx $p); sha256sum got? | cut -c1-70\n\
        kill -QUIT $p; wait $p; echo $?";
    compare(&cli::program("bash"), &["-c", script], &|directory| {
        std::fs::create_dir(directory.join("www")).expect("a directory");
        std::fs::write(directory.join("www/big"), cli::noise(2_000_000)).expect("a file");
        write(
            directory,
            "nginx.conf",
            "daemon off; worker_processes 2; pid nginx.pid; events { worker_connections 64; }\n\
             http { access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4;\n\
             scgi_temp_path t5; server { listen unix:web.sock; root www; } }\n",
        );
    });
}

#[test]
fn names_and_interfaces_are_the_hosts() {
    compare(&cli::program("getent"), &["hosts", "localhost"], &|_| ());
    compare(&cli::program("ip"), &["-o", "addr", "show", "lo"], &|_| ());
}
