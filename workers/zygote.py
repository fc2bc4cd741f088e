"""Forks Python guests for one cell: a warm interpreter (the zygote) that never runs guest code itself.

    cell --control socket (fd 3)--> zygote --fork--> shepherd --fork--> guest

* The ZYGOTE imports the usual modules once and forks shepherds with their guests ahead of need. It tells the cell the
  numbers of their pipes; the cell opens its ends through /proc/PID/fd before the guest has anything to run, so that no
  output and no end of file can be lost, and nothing lies on a disk. Code, environment and arguments of a guest never
  come here: the cell writes them to the guest's own request pipe.
* The SHEPHERD waits for its guest, then kills whatever the guest left behind, and reports on the report pipe. It does
  the same when the cell lets go of that pipe, which the kernel does for a cell that was killed. It needs no zygote.
* The GUEST is leader of its own session, dies with its shepherd, and holds nothing but its standard streams. It waits
  for its request, runs it, and ends.

Control, cell to zygote, JSON lines: {"make": COUNT} guests, {"taken": SET}. Its end of file ends the zygote.
Control, zygote to cell: {"ready": VERSION} or {"error": TEXT}; {"set": SET, "fds": [input, output, error, report,
request]} or {"failed": TEXT} for each guest made; and {"gone": SET} once everything below a shepherd that died without
a report, or before its guest was taken, is gone.
Report pipe: {"started": PID, "shepherd": PID, "rss": KiB at its fork}, {"failed": TEXT}, {"exited": WAIT_STATUS,
"user": s, "system": s, "maxrss": KiB of its largest process, "blocks": of 512 bytes, read and written}. Request pipe: 4
bytes big-endian length, a JSON header of that length, then the code.
"""
import sys

AT_START = frozenset(sys.modules)  # what an interpreter itself has imported when it comes to a program

import _imp
import _io
import _random
import _signal  # without the enumerations of `signal`, whose code would be copied into every guest
import _thread
import atexit
import codecs
import ctypes
import faulthandler
import gc
import io
import json
import linecache
import logging
import os
import random
import resource
import select
import signal
import tempfile
import threading
import time
import traceback
import warnings
from importlib.machinery import PathFinder

CONTROL = 3  # a socket, from the cell
PLACEHOLDER = 4  # keeps the pipes' numbers above those a shepherd assigns

# What a shepherd hands to its guest, beside 0, 1 and 2.
REPORT = 3
REQUEST = 4

NICENESS = 5  # added for a guest: its cell, which is to stop it when it has to, goes first

ENDING_S = 5  # how long a zygote without a cell waits for its shepherds
TRACED_S = 1  # how long a guest that was killed is looked at, of whose end nobody tells while somebody traces it
TRACKER_S = 2  # how long a guest's end waits until the shared memory it has left is removed
LOOK_S = 0.01  # how soon to look again at what nobody tells of; each time later where nothing changes, up to
LONGEST_LOOK_S = 1
LOCKED_S = 1  # how long a guest that ends waits for a locked file, as CPython does

TICKS = os.sysconf('SC_CLK_TCK')  # a second, in /proc/PID/stat

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL keeps the interpreter's lock, as a bare fork needs
prctl = libc.prctl

# Imported once, so that a guest's import is a dictionary lookup. Chosen by measurement: frequent, and slow to import or
# shared for nothing. Left out: multiprocessing (makes its authentication key when imported: all guests would share it).
PRELOAD = (
    'argparse', 'base64', 'collections', 'contextlib', 'copy', 'csv', 'dataclasses', 'datetime', 'decimal', 'enum',
    'functools', 'inspect', 'io', 'itertools', 'json', 'linecache', 'logging', 'math', 'pathlib', 'queue',
    'random', 're', 'select', 'shutil', 'signal', 'socket', 'statistics', 'string', 'struct', 'subprocess', 'tempfile',
    'textwrap', 'threading', 'time', 'traceback', 'typing', 'urllib.parse', 'uuid',
)

MODULES = sys.modules  # the interpreter's own, whatever a guest makes of `sys.modules`
AHEAD = {}  # what is in it before there is a guest
REPLACEABLE = set()  # names of modules in AHEAD that are another module where a guest has one of its own
COME = set()  # numbers of the signals that have come


def tell(fd, message, before=b''):
    """Writes one JSON line, as `say` does."""
    say(fd, before + json.dumps(message).encode())


def say(fd, line):
    """Writes one line; a reader that is gone is noticed elsewhere."""
    try:
        os.write(fd, line + b'\n')
    except (BrokenPipeError, ConnectionResetError):
        pass


def children():
    """Process ids of this process's children, zombies included."""
    try:
        with open('/proc/thread-self/children', 'rb') as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel built without CONFIG_PROC_CHILDREN
        return [int(pid) for pid in os.listdir('/proc') if pid.isdigit() and parent_of(pid) == os.getpid()]


def parent_of(pid):
    try:
        return int(stat_of(pid)[1])
    except OSError:
        return None


def is_over(pid):
    """
    Whether only a zombie is left of it, and of all its threads. One that stays is traced: it is its tracer's, and no wait of
    its parent sees it until that lets go of it, or ends.
    """
    try:
        return all(stat_of('%d/task/%s' % (pid, thread))[0] == b'Z' for thread in os.listdir('/proc/%d/task' % pid))
    except OSError:
        return False


def all_over(pids):
    """Whether these, which are all children, are over, and none of them has left one that was not seen among them."""
    return all(map(is_over, pids)) and children() == pids


def stat_of(process):
    """The fields of proc_pid_stat(5) from the state on."""
    with open('/proc/%s/stat' % process, 'rb') as file:
        return file.read().rpartition(b')')[2].split()


def kill(pid, number):
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # gone, or it took another user's rights
        pass


def fork():
    """
    As `os.fork` of a process with one thread, but without what modules do after one (new locks, a new seed): that would
    copy 700 KiB. What of it a guest needs, `become_guest` does.
    """
    pid = libc.fork()
    if pid < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return pid


# ---------------------------------------------------------------------------------------------------------- zygote


class Zygote:
    """Serves start requests until the cell closes the control socket."""

    def __init__(self):
        self.made = 0
        self.cell_ends = {}  # set number -> the cell's ends of its pipes, until the cell has opened them
        self.shepherds = {}  # process id -> set number
        self.lost = []  # sets whose shepherd died without a report
        self.wakeup, wakeup_writer = os.pipe()
        os.set_blocking(wakeup_writer, False)
        signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGCONT):  # without a handler nothing is written to the wakeup pipe
            signal.signal(number, lambda number, _: COME.add(number))

    def serve(self):
        """Returns in every guest, with what it is to run; in the zygote itself it never returns."""
        poll = select.poll()
        poll.register(CONTROL, select.POLLIN)
        poll.register(self.wakeup, select.POLLIN)
        received = b''
        while True:
            # Nobody tells of what comes here from one that is traced.
            ready = [fd for fd, _ in poll.poll(LOOK_S * 1000 if self.lost else None)]
            if self.wakeup in ready:
                os.read(self.wakeup, 4096)
            if self.wakeup in ready or self.lost:
                self.reap()
            if CONTROL not in ready:
                continue
            try:
                chunk = os.read(CONTROL, 65536)
            except ConnectionResetError:
                chunk = b''
            if not chunk:
                self.end()
            *lines, received = (received + chunk).split(b'\n')
            for line in lines:
                message = json.loads(line)
                for fd in self.cell_ends.pop(message.get('taken'), ()):
                    os.close(fd)
                for _ in range(message.get('make', 0)):
                    program = self.make()
                    if program is not None:
                        return program

    def make(self):
        """Forks a shepherd; returns the program in its guest, and None here."""
        fds = []
        try:
            for _ in range(5):
                fds += os.pipe()
            guest_ends = [fds[0], fds[3], fds[5], fds[7], fds[8]]
            pid = fork()
        except OSError as error:
            for fd in fds:
                os.close(fd)
            tell(CONTROL, {'failed': 'cannot fork: %s' % error.strerror})
            return None
        if pid == 0:
            return shepherd(guest_ends)
        for fd in guest_ends:
            os.close(fd)
        self.made += 1
        self.shepherds[pid] = self.made
        self.cell_ends[self.made] = [fds[1], fds[2], fds[4], fds[6], fds[9]]
        tell(CONTROL, {'set': self.made, 'fds': self.cell_ends[self.made]})
        return None

    def reap(self):
        """Reaps shepherds; kills what a dead one left, which the kernel gave to this process as the next subreaper."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if pid == 0:
                break
            number = self.shepherds.pop(pid, None)
            if number is not None and (status != 0 or number in self.cell_ends):  # a spare guest was killed
                self.lost.append(number)
                for fd in self.cell_ends.pop(number, ()):
                    os.close(fd)
        if not self.lost:
            return
        below = children()
        orphans = [pid for pid in below if pid not in self.shepherds and not is_over(pid)]
        for pid in orphans:
            kill(pid, signal.SIGKILL)  # its end is a SIGCHLD, which leads here again
        if not orphans and children() == below:  # what one leaves that is over only now is another orphan
            for number in self.lost:
                tell(CONTROL, {'gone': number})
            self.lost.clear()

    def end(self):
        """The cell is gone or closing: shepherds notice by themselves, this only waits and sweeps."""
        for fds in self.cell_ends.values():
            for fd in fds:
                os.close(fd)
        self.cell_ends.clear()
        for pid in self.shepherds:
            kill(pid, signal.SIGCONT)  # a guest may have stopped its shepherd
        deadline = time.monotonic() + ENDING_S
        while not all_over(children()) and time.monotonic() < deadline:
            self.lost.append(0)  # so that everything which is no shepherd is killed
            self.reap()
            if select.select([self.wakeup], [], [], 0.1)[0]:
                os.read(self.wakeup, 4096)
        os._exit(0)


# -------------------------------------------------------------------------------------------------------- shepherd


def shepherd(guest_ends):
    """Forks the guest and returns its program there; here it waits, sweeps, reports and exits."""
    parent = os.getpid()
    status = 1
    try:
        os.setsid()
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number, fd in enumerate(guest_ends):
            os.dup2(fd, number, number <= 2)
        close_from(REQUEST + 1)
        COME.clear()
        wakeup, wakeup_writer = os.pipe()
        os.set_blocking(wakeup_writer, False)
        _signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        guest = fork()
        if guest == 0:
            return become_guest(parent)
        watch(guest, wakeup)
        status = 0
    except OSError as error:
        tell(REPORT, {'failed': 'cannot start a shepherd: %s' % error})
    finally:
        if os.getpid() == parent:
            os._exit(status)


def watch(guest, wakeup):
    """
    Until the guest has ended, or the cell has let go of the report pipe. The cell says with SIGCONT that it has killed it,
    which its tracer may keep from being seen.
    """
    null = os.open('/dev/null', os.O_RDWR)
    for fd in (0, 1, 2, REQUEST):  # the guest alone holds them: the cell sees their end when it ends
        os.dup2(null, fd, False)
    poll = select.poll()
    poll.register(REPORT, 0)  # POLLERR comes unasked
    poll.register(wakeup, select.POLLIN)
    usage = Usage()
    deadline = None
    while True:
        ready = [fd for fd, _ in poll.poll(deadline and LOOK_S * 1000)]
        if REPORT in ready:
            break
        if wakeup in ready:
            os.read(wakeup, 4096)
        if usage.reap_all_but(guest):
            let_trackers_end(guest, poll, wakeup)
            break
        if _signal.SIGCONT in COME:
            if is_over(guest):
                break
            deadline = deadline or time.monotonic() + TRACED_S
            if time.monotonic() > deadline:  # somebody else has sent it
                COME.discard(_signal.SIGCONT)
                deadline = None
    # Its id is valid whether it lives or not, because nothing has reaped it.
    kill(guest, _signal.SIGKILL)
    kill(-guest, _signal.SIGKILL)
    status = sweep(guest, usage, wakeup)
    used = {'user': usage.user, 'system': usage.system, 'maxrss': usage.maxrss, 'blocks': usage.blocks}
    tell(REPORT, {'exited': status, **used}, b'\n')  # its guest may have begun a line
    os.close(REPORT)  # the cell need not wait until this process is gone, which takes a millisecond


def let_trackers_end(guest, poll, wakeup):
    """
    Shared memory that a guest has left is removed by its `multiprocessing.resource_tracker`, which ends once nobody holds
    the pipe to it. So all others are killed first. The cell says with SIGCONT that it wants the end now.
    """
    deadline = time.monotonic() + TRACKER_S
    while _signal.SIGCONT not in COME:
        trackers = 0
        left = [pid for pid in children() if pid != guest]
        if left:
            hurry()
        for pid in left:
            if is_tracker(pid):
                trackers += 1
            else:
                kill(pid, _signal.SIGKILL)
        left_s = deadline - time.monotonic()
        if trackers == 0 or left_s < 0:
            break
        ready = [fd for fd, _ in poll.poll(left_s * 1000)]
        if REPORT in ready:
            break
        if wakeup in ready:
            os.read(wakeup, 4096)


def is_tracker(pid):
    """
    A Python that is deaf to both signals: that holds from its fork on. Its command line would tell more, but a process can
    keep for ever who reads that.
    """
    deaf = 0
    try:
        if os.readlink('/proc/%d/exe' % pid) != os.readlink('/proc/self/exe'):
            return False
        with open('/proc/%d/status' % pid, 'rb') as file:
            for line in file:
                if line.startswith((b'SigBlk:', b'SigIgn:')):
                    deaf |= int(line[7:], 16)
    except OSError:
        return False
    return all(deaf >> (number - 1) & 1 for number in (_signal.SIGINT, _signal.SIGTERM))


class Usage:
    """What a guest and its descendants used, added up as they are reaped."""

    user = system = maxrss = blocks = 0

    def reap(self, pid, options):
        """As `os.waitpid`; raises ChildProcessError when there is no such child."""
        pid, status, used = os.wait4(pid, options)
        self.user += used.ru_utime
        self.system += used.ru_stime
        self.maxrss = max(self.maxrss, used.ru_maxrss)
        self.blocks += used.ru_inblock + used.ru_oublock
        return pid, status

    def add(self, pid):
        """Of a zombie that is not reaped."""
        user, system, reaped_user, reaped_system = (int(ticks) / TICKS for ticks in stat_of(pid)[11:15])
        self.user += user + reaped_user
        self.system += system + reaped_system

    def reap_all_but(self, guest):
        """Reaps the daemons of a guest, which end whenever they like; True when the guest itself has ended."""
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return False
            if ended.si_pid == guest:
                return True
            self.reap(ended.si_pid, 0)  # no other: the guest may have ended since


def sweep(guest, usage, wakeup):
    """
    Kills and reaps until no child is left, or only zombies that others trace. Every descendant becomes a child at the latest
    when its parent dies; of one whose parent is traced nobody tells then.
    """
    exited = None
    left = []
    over = False
    look_s = LOOK_S
    while True:
        before, left = left, children()
        if left != [guest]:
            hurry()
        for pid in left:
            kill(pid, _signal.SIGKILL)
        reaped = False
        try:
            pid, status = usage.reap(-1, os.WNOHANG)
            while pid:
                reaped = True
                if pid == guest:
                    exited = status
                pid, status = usage.reap(-1, os.WNOHANG)
        except ChildProcessError:
            return exited
        if over and not reaped:
            for pid in left:
                usage.add(pid)
            return int(stat_of(guest)[-1]) if exited is None else exited
        # Then nobody makes another one, and whoever of them has traced others has let go of them.
        over = all_over(left)
        if left != before:
            look_s = LOOK_S
        if over or reaped:
            continue
        if select.select([wakeup], [], [], look_s)[0]:
            os.read(wakeup, 4096)
        else:
            look_s = min(2 * look_s, LONGEST_LOOK_S)


def hurry():
    """Goes before all that may fork faster than it is killed; only root may. Its cell, which hears of the end, would wait."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except OSError:
        pass


def close_from(first):
    if sys.version_info >= (3, 10):
        os.closerange(first, 2**31 - 1)  # one system call
    else:
        for fd in os.listdir('/proc/self/fd'):
            if int(fd) >= first:
                os.closerange(int(fd), int(fd) + 1)  # ignores the descriptor of the listing itself


# ----------------------------------------------------------------------------------------------------------- guest
#
# What runs here before the guest's own code is written so that it touches few objects of the zygote: each page that one lies
# on is copied. (`npm run bench memory` tells what a guest takes.)


def become_guest(parent):
    """Sets everything up for guest code, and only then reads it. Returns the code, its namespace and its path."""
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the shepherd died before the line above
            os._exit(1)
        _signal.set_wakeup_fd(-1)
        for number in (_signal.SIGCHLD, _signal.SIGCONT):
            _signal.signal(number, _signal.SIG_DFL)
        close_from(REQUEST + 1)
        _random.Random.seed(random._inst)  # by the system: all others have another
        thread = threading.main_thread()
        if hasattr(thread, '_set_native_id'):
            thread._set_native_id()
        # Held back until guest code runs: no interrupt may be raised in the code below.
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [_signal.SIGINT])

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        with open(REQUEST, 'rb') as pipe:
            length = pipe.read(4)
            if not length:
                os._exit(0)  # never needed
            header = json.loads(pipe.read(int.from_bytes(length, 'big')).decode())
            # Limits and confinement belong here: nothing of the guest's code has been read yet.
            limit(header['groups'], header.get('openFiles'))
            os.chdir(header['cwd'])
            namespace = prepare_interpreter(header)
            say(REPORT, b'{"started":%d,"shepherd":%d,"rss":%d}' % (os.getpid(), parent, rss))
            os.close(REPORT)
            os.nice(NICENESS)
            code = pipe.read(header['codeBytes'])
            if len(code) < header['codeBytes']:
                os._exit(1)  # the cell ended
            # Of bytes the compiler would believe what they say of their encoding. (`utf-8-sig` is a module that each guest
            # would have to import.)
            code = code.removeprefix(codecs.BOM_UTF8).decode()
    except Exception as error:
        tell(REPORT, {'failed': ('%s: %s' % (type(error).__name__, error))[:1000]})
        os._exit(1)
    path = header['mainPath']
    if not os.path.isfile(path):
        # Tracebacks and `inspect` find the source all the same. The entry is the lazy kind, which wins over no file.
        linecache.cache[path] = (lambda: code,)
    return [path, namespace, code]


def limit(groups, open_files):
    """Joins control groups, by the files that take members, and sets limits for this process and its children."""
    for path in groups:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b'0')
        os.close(fd)
    if open_files:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard != resource.RLIM_INFINITY:
            open_files = min(open_files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))


def prepare_interpreter(header):
    """
    Makes this process what `python3 MAIN_PATH ARGS...` is before its first line; returns `__main__`'s namespace. Where
    there is no such file that has no `__file__`, as under `python3 -c`: `multiprocessing` would run it.
    """
    if not header['stdin']:
        null = os.open('/dev/null', os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    path = header['mainPath']
    environment = header['env']
    for name, value in environment.items():
        os.environ[name] = value
    if not (environment.get('TMPDIR') or environment.get('TEMP') or environment.get('TMP')):
        tempfile.tempdir = header['tmpDir']
    steer(environment)

    sys.argv = [path, *header['args']]
    if hasattr(sys, 'orig_argv'):
        sys.orig_argv = [sys.executable, *sys.argv]
    sys.path_importer_cache.pop(sys.path[0], None)
    library = [entry for entry in environment.get('PYTHONPATH', '').split(os.pathsep) if entry]
    sys.path[:1] = [os.path.dirname(os.path.realpath(path) if os.path.islink(path) else path), *library]
    for directory in sys.path[: len(library) + 1]:
        forget_replaced(directory)

    encoding, _, errors = environment.get('PYTHONIOENCODING', '').partition(':')
    errors = errors or ('strict' if encoding else sys.stdout.errors)
    encoding = codecs.lookup(encoding or 'utf-8').name
    buffered = not environment.get('PYTHONUNBUFFERED')
    sys.stdin = sys.__stdin__ = open_stream(0, 'stdin', 'r', encoding, errors)
    sys.stdout = sys.__stdout__ = open_stream(1, 'stdout', 'w', encoding, errors, buffered)
    sys.stderr = sys.__stderr__ = open_stream(2, 'stderr', 'w', encoding, 'backslashreplace', buffered)
    if environment.get('PYTHONFAULTHANDLER'):
        faulthandler.enable()

    # A module of its own: nothing of this file is in it. What CPython puts there depends on its version.
    own = sys.modules['__main__'].__dict__
    main = sys.modules['__main__'] = type(sys)('__main__')
    main.__loader__ = type(own['__loader__'])('__main__', path)
    main.__builtins__ = sys.modules['builtins']
    if '__annotations__' in own:
        main.__annotations__ = {}
    if os.path.isfile(path):
        main.__file__ = path
        if '__cached__' in own:
            main.__cached__ = None
    gc.enable()
    return main.__dict__


def forget_replaced(directory):
    """Takes back what was imported ahead, and what is found here before it: a guest's own `queue`, say."""
    try:
        entries = os.listdir(directory)
    except OSError:
        return
    for name in {entry.partition('.')[0] for entry in entries} & REPLACEABLE:
        spec = PathFinder.find_spec(name, [directory])
        if spec is not None and spec.loader is not None:  # a mere directory would come last
            for module in [each for each in MODULES if each.partition('.')[0] == name]:
                del MODULES[module]


def steer(environment):
    """What the interpreter reads from its environment when it starts, and can still heed, but for streams and paths."""
    if 'TZ' in environment:
        time.tzset()
    if environment.get('PYTHONDONTWRITEBYTECODE'):
        sys.dont_write_bytecode = True
    if environment.get('PYTHONPYCACHEPREFIX'):
        sys.pycache_prefix = environment['PYTHONPYCACHEPREFIX']
    options = [option for option in environment.get('PYTHONWARNINGS', '').split(',') if option]
    if options:
        sys.warnoptions += options
        warnings._processoptions(options)  # while the guest's modules, of which an option may name one, are not found
    now_ns = time.time_ns()
    logging._startTime = now_ns if isinstance(logging._startTime, int) else now_ns / 1e9


def open_stream(fd, name, mode, encoding, errors, buffered=True):
    """A standard stream as CPython makes it, but with lines passed on as they are printed."""
    raw = io.FileIO(fd, mode + 'b', closefd=False)
    raw.name = '<%s>' % name
    buffer = raw if not buffered else io.BufferedReader(raw) if mode == 'r' else io.BufferedWriter(raw)
    lines = mode == 'w' and buffered
    stream = io.TextIOWrapper(buffer, encoding, errors, '\n', line_buffering=lines, write_through=not buffered)
    stream.mode = mode
    return stream


# ----------------------------------------------------------------------------------------------------- guest's end
#
# What Py_RunMain and Py_FinalizeEx do once the program's last line has run, without what makes them slow in
# a forked process: they free every object of the interpreter, and so copy every page shared with the zygote. Here the
# guest's own objects are freed, the rest goes with the process. What differs: `__del__` is not called of objects that
# are held by what was imported before the guest (files among them are flushed).


def leave(main_path, raised):
    """Ends the guest as the interpreter does after the exception in the list `raised`, or, if that is empty, without."""
    error = raised.pop() if raised else None
    exit_code = end_of_program(error, main_path)
    interrupted = type(error) is KeyboardInterrupt
    del error

    flush()
    try:
        threading._shutdown()  # joins the threads that are not daemons
    except BaseException as ignored:
        print_ignored('in: %r' % threading, ignored)
    try:
        atexit._run_exitfuncs()
    except BaseException:  # was printed
        pass
    if not flush(loudly=True):
        exit_code = 120
    for name in ('last_exc', 'last_type', 'last_value', 'last_traceback'):
        if hasattr(sys, name):
            delattr(sys, name)
    forget_handlers()
    for name in ('stdin', 'stdout', 'stderr'):
        setattr(sys, name, getattr(sys, '__%s__' % name, None))
    free_modules()
    flush_files()
    flush()
    if interrupted:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        os.kill(os.getpid(), _signal.SIGINT)
    libc.fflush(None)  # what a library has in a buffer of C's; exit() would run the libraries' own cleaning up as well
    os._exit(exit_code)


def end_of_program(error, main_path):
    """Tells the guest's user about an unhandled exception; returns the exit code."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return exit_code_of(error)
    # The outermost frame is this file's.
    trace = error.__traceback__ = error.__traceback__.tb_next
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    display = sys.__excepthook__
    if sys.version_info < (3, 13) and not os.path.isfile(main_path):
        display = traceback.print_exception  # the built-in one reads source lines only from files
    hook = getattr(sys, 'excepthook', display)
    try:
        (display if hook is sys.__excepthook__ else hook)(type(error), error, trace)
    except SystemExit as exit:
        return exit_code_of(exit)
    except BaseException as failure:
        print('Error in sys.excepthook:', file=sys.stderr)
        failure.__traceback__ = failure.__traceback__.tb_next
        failure.__suppress_context__ = True
        traceback.print_exception(type(failure), failure, failure.__traceback__)
        print('\nOriginal exception was:', file=sys.stderr)
        display(type(error), error, trace)
    return 1


def exit_code_of(error):
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(2**63) <= code < 2**63 else 0xFF
    flush()
    print(code, file=sys.stderr)
    return 1


def flush(loudly=False):
    """Flushes the standard streams; False when that failed."""
    flushed = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if not getattr(stream, 'closed', stream is None):
                stream.flush()
        except BaseException as ignored:
            flushed = False
            if loudly and stream is sys.stdout:
                new = sys.version_info >= (3, 13)
                print_ignored('on flushing sys.stdout:' if new else 'in: %r' % stream, ignored)
    return flushed


def forget_handlers():
    for number in range(1, _signal.NSIG):
        if callable(_signal.getsignal(number)):
            _signal.signal(number, _signal.SIG_DFL)


def free_modules():
    """
    Frees the program and what it has imported. A class in a cache may still hold names of theirs: then those lose what may
    have a finalizer, and keep what that may need. A thread goes on with all it has.
    """
    freed = []
    while MODULES:
        name, module = MODULES.popitem()  # the newest: nothing that is shared with the zygote is touched
        if AHEAD.get(name) is module:
            MODULES[name] = module
            break
        freed.append(module)
    freed.append(MODULES.pop('__main__', None))
    namespaces = {id(object.__getattribute__(each, '__dict__')) for each in freed if issubclass(type(each), type(sys))}
    while freed:
        freed.pop()
    gc.collect()
    held = [thing for thing in gc.get_objects() if id(thing) in namespaces and type(thing) is dict]
    if held and _thread._count() == 0:
        for namespace in held:
            if '__spec__' in namespace:  # and no other that lies where one has been
                forget_objects(namespace)
        gc.collect()


def forget_objects(namespace):
    needed = (type(sys), type(leave), type(len), type)
    for name, value in list(namespace.items()):
        if gc.is_tracked(value) and not issubclass(type(value), needed):
            namespace[name] = None


def flush_files():
    """Flushes all files that are open; one that a daemon thread is just writing to may be locked for ever."""
    files = [thing for thing in gc.get_objects() if issubclass(type(thing), _io._IOBase)]
    try:
        while files and _thread._count() > 0:
            flusher = threading.Thread(target=flush_all, args=(files,), daemon=True)
            flusher.start()
            flusher.join(LOCKED_S)
    except RuntimeError:  # there may be no more threads
        pass
    flush_all(files)


def flush_all(files):
    """Empties the list, too: who is kept by one file leaves the others to the next."""
    while files:
        try:
            files.pop().flush()
        except Exception:  # closed, or only for reading
            pass


def print_ignored(where, error):
    """As CPython tells about an exception that nobody can handle."""
    try:
        lines = traceback.format_exception_only(type(error), error)
        sys.stderr.write('Exception ignored %s\n%s' % (where, ''.join(lines)))
    except Exception:
        pass


# ------------------------------------------------------------------------------------------------------------ entry


def boot():
    """Makes this interpreter a zygote."""
    if sys.version_info < (3, 9):
        tell(CONTROL, {'error': 'it is Python %d.%d' % sys.version_info[:2]})
        os._exit(1)
    os.set_inheritable(CONTROL, False)
    null = os.open('/dev/null', os.O_RDONLY)
    if null != PLACEHOLDER:
        os.dup2(null, PLACEHOLDER, False)
    os.environ.clear()  # of what the interpreter sets for itself
    for name in PRELOAD:
        __import__(name)
    AHEAD.update(MODULES)
    fixed = AT_START.union(sys.builtin_module_names)  # these, and frozen ones, come before those in directories
    REPLACEABLE.update(name for name in AHEAD if '.' not in name and name not in fixed and not _imp.is_frozen(name))
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    gc.disable()
    gc.collect()
    gc.freeze()  # a collection in a guest does not touch, and so copy, what it shares with the zygote
    tell(CONTROL, {'ready': '%d.%d.%d' % sys.version_info[:3]})
    return Zygote()


if __name__ == '__main__':
    # Back here in a guest only, with as few frames below its code as Python allows: one. Popped, so that only the
    # guest holds what is the guest's.
    program = boot().serve()
    raised = []
    try:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])  # here, because it raises the interrupt that was held back
        exec(compile(program.pop(), program[0], 'exec', dont_inherit=True), program.pop())
    except BaseException as error:
        raised.append(error)
    leave(program[0], raised)
