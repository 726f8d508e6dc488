//! Python: threads, processes, signals, memory, a database.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};

fn compare(script: &str) {
    let path = tempfile::Builder::new().suffix(".py").tempfile_in(cli::scratch()).expect("a file");
    std::fs::write(path.path(), script).expect("written");
    // No bytecode is written, so that every run does the same.
    let args = ["-B", path.path().to_str().expect("a plain path")];
    let native = bounded::compare(&cli::python(), &args, b"");
    let stderr = String::from_utf8_lossy(&native.stderr);
    assert!(native.status.code() == Some(0) && !native.stdout.is_empty(), "{script}\n{stderr}");
}

#[test]
fn threads() {
    compare(
        "import threading, queue, time, concurrent.futures as futures\n\
         q, lock, total = queue.Queue(), threading.Lock(), 0\n\
         def work():\n\
         \x20   global total\n\
         \x20   while (n := q.get()) is not None:\n\
         \x20       with lock: total += n\n\
         threads = [threading.Thread(target=work) for _ in range(8)]\n\
         for t in threads: t.start()\n\
         for n in range(2000): q.put(n)\n\
         for t in threads: q.put(None)\n\
         for t in threads: t.join()\n\
         print(total, threading.active_count())\n\
         with futures.ThreadPoolExecutor(4) as pool: print(sum(pool.map(lambda n: n * n, range(100))))\n\
         event, barrier = threading.Event(), threading.Barrier(3)\n\
         threading.Timer(0.02, event.set).start()\n\
         print(event.wait(60), event.wait(0.01))\n\
         for _ in range(2): threading.Thread(target=barrier.wait, daemon=True).start()\n\
         print(barrier.wait() in range(3))\n\
         start = time.monotonic(); time.sleep(0.05); print(0.05 <= time.monotonic() - start < 30)\n\
         threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()\n",
    );
}

#[test]
fn subprocesses() {
    compare(
        "import subprocess, sys, os\n\
         print(subprocess.run(['echo', 'hello'], capture_output=True, text=True).stdout)\n\
         print(subprocess.run('exit 3', shell=True).returncode, subprocess.run(['sh', '-c', 'kill -9 $$']).returncode)\n\
         p = subprocess.Popen(['tr', 'a-z', 'A-Z'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n\
         print(p.communicate(b'some text ' * 20000)[0][-10:], p.returncode)\n\
         try: subprocess.run(['sleep', '1000'], timeout=0.1)\n\
         except subprocess.TimeoutExpired as e: print('time-out', e.cmd)\n\
         try: subprocess.run(['/no/such/program'])\n\
         except FileNotFoundError as e: print(e)\n\
         p = subprocess.Popen(['sleep', '1000'], start_new_session=True); print(os.getsid(p.pid) == p.pid); p.terminate(); print(p.wait())\n\
         print(subprocess.check_output([sys.executable, '-c', 'import os; print(os.getcwd())'], cwd='/usr'))\n\
         print(subprocess.check_output(['env', '-i', 'A=b', 'env']), os.popen('echo popen').read())\n\
         r, w = os.pipe(); print(subprocess.run(['sh', '-c', f'echo passed >&{w}'], pass_fds=[w]).returncode, os.read(r, 100))\n\
         ps = [subprocess.Popen(['sh', '-c', f'exit {n}']) for n in range(10)]; print([p.wait() for p in ps])\n",
    );
}

const MULTIPROCESSING: &str = "import multiprocessing as mp, sys, os\n\
    def square(n): return n * n\n\
    def child(q, value, lock):\n\
    \x20   for _ in range(200):\n\
    \x20       with lock: value.value += 1\n\
    \x20   q.put(os.getpid() != os.getppid())\n\
    def talk(c): c.send(c.recv() * 2); c.close(); sys.exit(5)\n\
    if __name__ == '__main__':\n\
    \x20   m = mp.get_context('METHOD')\n\
    \x20   with m.Pool(3) as pool: print(pool.map(square, range(50)), pool.apply(square, (7,)))\n\
    \x20   q, v, lock = m.Queue(), m.Value('i', 0, lock=False), m.Lock()\n\
    \x20   ps = [m.Process(target=child, args=(q, v, lock)) for _ in range(3)]\n\
    \x20   for p in ps: p.start()\n\
    \x20   print([q.get(timeout=100) for _ in ps])\n\
    \x20   for p in ps: p.join()\n\
    \x20   print([p.exitcode for p in ps], v.value)\n\
    \x20   a, b = m.Pipe(); p = m.Process(target=talk, args=(b,)); p.start(); a.send('ab'); print(a.recv()); p.join(); print(p.exitcode)\n\
    \x20   p = m.Process(target=sys.stdin.read if False else os.abort); p.start(); p.join(); print(p.exitcode)\n";

#[test]
fn multiprocessing_by_fork() {
    compare(&MULTIPROCESSING.replace("METHOD", "fork"));
}

#[test]
fn multiprocessing_by_spawn() {
    compare(&MULTIPROCESSING.replace("METHOD", "spawn"));
}

#[test]
fn signals() {
    compare(
        "import signal, os, time, threading, select\n\
         got = []\n\
         for s in (signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD): signal.signal(s, lambda n, f: got.append(n))\n\
         os.kill(os.getpid(), signal.SIGUSR1); signal.setitimer(signal.ITIMER_REAL, 0.02)\n\
         while signal.SIGALRM not in got: signal.pause()\n\
         if (pid := os.fork()) == 0: os._exit(3)\n\
         print(os.waitpid(pid, 0)[1] >> 8)\n\
         while signal.SIGCHLD not in got: time.sleep(0.01)\n\
         print([signal.Signals(n).name for n in got])\n\
         signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); os.kill(os.getpid(), signal.SIGUSR2)\n\
         print(signal.sigpending(), signal.sigwait([signal.SIGUSR2]))\n\
         r, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w); os.kill(os.getpid(), signal.SIGUSR1)\n\
         print(select.select([r], [], [], 60)[0] == [r], os.read(r, 10)); signal.set_wakeup_fd(-1)\n\
         threading.Thread(target=lambda: (time.sleep(0.05), signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1))).start()\n\
         time.sleep(0.2); print(len(got))\n\
         try: signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n\
         except KeyboardInterrupt: print('interrupted')\n",
    );
}

#[test]
fn mappings() {
    compare(
        "import mmap, os, tempfile\n\
         m = mmap.mmap(-1, 1 << 16); m[:5] = b'hello'\n\
         if (pid := os.fork()) == 0: m[:5] = b'child'; os._exit(0)\n\
         os.waitpid(pid, 0); print(m[:5])\n\
         with tempfile.TemporaryFile() as f:\n\
         \x20   f.truncate(20000); f.flush(); n = mmap.mmap(f.fileno(), 0); n[10000:10004] = b'text'; n.flush(); f.seek(10000); print(f.read(4))\n\
         \x20   n.resize(40000); print(len(n), n.find(b'text'), os.fstat(f.fileno()).st_size); n.madvise(mmap.MADV_DONTNEED); print(n[10000:10004])\n\
         from multiprocessing import shared_memory\n\
         s = shared_memory.SharedMemory(create=True, size=100); t = shared_memory.SharedMemory(s.name); s.buf[0] = 9; print(t.buf[0]); t.close(); s.close(); s.unlink()\n",
    );
}

#[test]
fn a_database() {
    compare(
        "import sqlite3, os, threading\n\
         a, b = sqlite3.connect('file.db', timeout=60), sqlite3.connect('file.db', timeout=0.05)\n\
         print(a.execute('pragma journal_mode=wal').fetchone())\n\
         a.execute('create table t (n integer primary key, s text)')\n\
         with a: a.executemany('insert into t values (?, ?)', ((n, 'x' * (n % 50)) for n in range(3000)))\n\
         print(b.execute('select count(*), sum(length(s)) from t').fetchone())\n\
         a.execute('begin immediate')\n\
         try: b.execute('begin immediate')\n\
         except sqlite3.OperationalError as e: print(e)\n\
         a.rollback(); b.execute('create index i on t (s)'); b.commit()\n\
         if (pid := os.fork()) == 0:\n\
         \x20   c = sqlite3.connect('file.db', timeout=60); c.execute('delete from t where n % 3 = 0'); c.commit(); c.close(); os._exit(0)\n\
         os.waitpid(pid, 0); print(a.execute('select count(*) from t').fetchone(), a.execute('pragma integrity_check').fetchone())\n\
         def insert(n):\n\
         \x20   c = sqlite3.connect('file.db', timeout=60)\n\
         \x20   for i in range(20): c.execute('insert into t (s) values (?)', (str(n),)); c.commit()\n\
         ts = [threading.Thread(target=insert, args=(n,)) for n in range(3)]\n\
         for t in ts: t.start()\n\
         for t in ts: t.join()\n\
         print(a.execute('select count(*) from t').fetchone())\n",
    );
}

#[test]
fn asynchronous_programs() {
    compare(
        "import asyncio, sys, signal, os\n\
         async def echo(r, w):\n\
         \x20   w.write(await r.read(100)); await w.drain(); w.close()\n\
         async def main():\n\
         \x20   await asyncio.gather(*(asyncio.sleep(n / 1000) for n in range(30)))\n\
         \x20   p = await asyncio.create_subprocess_exec('cat', stdin=-1, stdout=-1); print(await p.communicate(b'through cat'), p.returncode)\n\
         \x20   server = await asyncio.start_unix_server(echo, 'socket'); r, w = await asyncio.open_unix_connection('socket')\n\
         \x20   w.write(b'over a socket'); print(await r.read(100)); w.close(); server.close()\n\
         \x20   done = asyncio.Event(); asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, done.set); os.kill(os.getpid(), signal.SIGUSR1); await done.wait(); print('signalled')\n\
         \x20   try: await asyncio.wait_for(asyncio.sleep(1000), 0.05)\n\
         \x20   except asyncio.TimeoutError: print('time-out')\n\
         \x20   print(await asyncio.to_thread(lambda: 5))\n\
         asyncio.run(main())\n",
    );
}
