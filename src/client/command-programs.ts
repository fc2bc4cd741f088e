/** Becomes the command that its arguments name: 127 when there is none, 126 when it cannot be run, as in a shell. */
const BECOME = `
def become(argv):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f'{argv[0]}: {error.strerror}\\n'.encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
`;

export const COMMAND = `import os, signal, sys
${BECOME}
become(sys.argv[1:])
`;

/** What the first byte of a frame on the standard input of {@link TERMINAL} says; 4 bytes of length and the rest follow. */
export const FRAME = { data: 0, size: 1, end: 2 } as const;

export function frame(kind: number, data: Uint8Array): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(kind);
  head.writeUInt32BE(data.byteLength, 1);
  return Buffer.concat([head, data]);
}

/** Runs the command on a terminal of its own: frames in, the terminal's output out, until the command itself has ended. */
export const TERMINAL = `import fcntl, os, pty, select, signal, struct, sys, termios
${BECOME}
# A job in the background may hold the terminal: that the command itself has ended is told apart from that.
wakeup, wakeup_writer = os.pipe()
os.set_blocking(wakeup_writer, False)
signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
signal.signal(signal.SIGCHLD, lambda *_: None)
lead, master = pty.fork()
if lead == 0:
    become(sys.argv[1:])
# What is typed may have to wait until the terminal's output is read.
os.set_blocking(master, False)
frames = typed = b''
is_open = True
has_ended = False
last = 65536  # more than a terminal holds when the command ends; such a job may write there without end
while last > 0:
    heard = [0] if is_open and len(typed) < 65536 else []
    readable, writable, _ = select.select([master, wakeup, *heard], [master] if typed else [], [])
    if master in readable:
        try:
            output = os.read(master, 65536)
        except BlockingIOError:  # the command has flushed it
            output = b''
        except OSError:  # EIO: nobody has the terminal any more
            break
        if has_ended:
            last -= len(output)
        while output:
            output = output[os.write(1, output):]
    if master in writable:
        try:
            typed = typed[os.write(master, typed):]
        except BlockingIOError:
            pass
        except OSError:  # as above
            typed = b''
    if 0 in readable:
        received = os.read(0, 65536)
        is_open = received != b''
        frames += received
        while len(frames) >= 5:
            kind, length = struct.unpack('>BI', frames[:5])
            if len(frames) < 5 + length:
                break
            data, frames = frames[5:5 + length], frames[5 + length:]
            if kind == ${FRAME.size}:
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', *struct.unpack('>HH', data), 0, 0))
            else:
                typed += data if kind == ${FRAME.data} else b'\\x04'
    if wakeup in readable:
        os.read(wakeup, 4096)
        has_ended = os.waitid(os.P_PID, lead, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    if has_ended and not select.select([master], [], [], 0)[0]:
        break
status = os.waitpid(lead, 0)[1]
code = os.waitstatus_to_exitcode(status)
sys.exit(code if code >= 0 else 128 - code)
`;
