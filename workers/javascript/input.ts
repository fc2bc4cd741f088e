import { Readable } from 'node:stream';
import { receiveMessageOnPort } from 'node:worker_threads';
import { type Context, callIn, currentContext } from './context.ts';
import { type CellMessage, program, tell } from './program.ts';
import { SHARED } from './shared.ts';

const { load: atomicLoad, wait } = Atomics;

/** Like the kernel's pipe: so much is taken ahead of the program's reading it. */
const BUFFER_BYTES = 65_536;

/** How long one synchronous wait for input lasts before it looks again, should a wake-up have been missed. */
const WAIT_MS = 1000;

const { apply } = Reflect;
const chunks: Uint8Array[] = [];
let bufferedBytes = 0;
let untold = 0;
let ended = false;
let wanted = false;
/** The program has paused the stream, so waiting for more does not hold it. */
let paused = false;
/** The program has said that it does not wait for input (`unref`): what reads it does not hold it either. */
let released = false;
/** The asynchronous context in which the program began to read; what comes is heard in it. */
let context: Context;
let handleMessage: (message: CellMessage) => void = () => {};

/** `process.stdin`, fed by the cell. It holds the event loop only while it waits for data, as a pipe does. */
export type StandardInput = Readable & { fd: number; ref(): StandardInput; unref(): StandardInput };

/** Creates `process.stdin`. */
export function createInput(): StandardInput {
  const input = new Readable({
    read() {
      wanted = true;
      context ??= currentContext();
      if (!paused && !released) program.control?.ref();
      supply(input);
    },
  }) as StandardInput;
  const hold = () => {
    if (wanted && !released) program.control?.ref();
  };
  input.fd = 0;
  input.ref = () => {
    released = false;
    hold();
    return input;
  };
  input.unref = () => {
    released = true;
    program.control?.unref();
    return input;
  };
  const { on, pause, resume } = input;
  input.pause = function pauseInput() {
    paused = true;
    program.control?.unref();
    return apply(pause, this, []) as StandardInput;
  };
  input.resume = function resumeInput() {
    paused = false;
    hold();
    return apply(resume, this, []) as StandardInput;
  };
  input.on = function onInput(this: Readable, ...args: unknown[]) {
    if (args[0] === 'readable') {
      paused = false;
      hold();
    }
    return apply(on, this, args as never) as StandardInput;
  } as typeof input.on;
  input.addListener = input.on;
  input.destroy = function destroyInput(error?: Error) {
    program.control?.unref();
    return Readable.prototype.destroy.call(this, error) as StandardInput;
  };
  return input;
}

/** Connects standard input to the cell. Messages that are not input go to `other`. */
export function openInput(input: StandardInput, other: (message: CellMessage) => void): void {
  ended = !program.stdin;
  handleMessage = (message) => {
    if (message.type !== 'input') return other(message);
    take(message);
    callIn(context, () => supply(input));
  };
  program.control?.on('message', handleMessage);
  program.control?.unref();
}

function take(message: CellMessage & { type: 'input' }): void {
  if (message.bytes.byteLength > 0) chunks.push(message.bytes);
  bufferedBytes += message.bytes.byteLength;
  ended ||= message.end;
  untold += 1;
  acknowledge();
}

function acknowledge(): void {
  if (untold === 0 || bufferedBytes > BUFFER_BYTES) return;
  tell({ type: 'taken', count: untold });
  untold = 0;
}

function supply(input: StandardInput): void {
  while (wanted) {
    const chunk = chunks.shift();
    if (chunk === undefined) break;
    bufferedBytes -= chunk.byteLength;
    wanted = false;
    // `push` may ask for more at once, which sets `wanted` again.
    input.push(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength));
  }
  acknowledge();
  if (wanted && ended) {
    wanted = false;
    input.push(null);
  }
  if (!wanted) program.control?.unref();
}

/** Reads up to `size` bytes as `read(0)` does in a process: waits until there are some; empty at the end. */
export function readInputSync(size: number): Uint8Array {
  while (chunks.length === 0 && !ended && program.control !== undefined) {
    const seen = atomicLoad(program.shared, SHARED.wake);
    const received = receiveMessageOnPort(program.control);
    if (received !== undefined) handleMessage(received.message as CellMessage);
    else wait(program.shared, SHARED.wake, seen, WAIT_MS);
  }
  const chunk = chunks[0];
  if (chunk === undefined) return new Uint8Array(0);
  const part = chunk.subarray(0, size);
  if (part.byteLength === chunk.byteLength) chunks.shift();
  else chunks[0] = chunk.subarray(size);
  bufferedBytes -= part.byteLength;
  acknowledge();
  return part;
}

/** Everything up to the end of standard input. */
export function readAllInputSync(): Buffer {
  const parts: Uint8Array[] = [];
  for (;;) {
    const part = readInputSync(BUFFER_BYTES);
    if (part.byteLength === 0) return Buffer.concat(parts);
    parts.push(part);
  }
}
