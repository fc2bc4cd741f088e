import { once } from 'node:events';
import type { Socket } from 'node:net';
import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ToCell } from '../../src/gen/elide/cell/v1/cell.ts';
import { FramedSocket } from '../../src/wire/framing.ts';

const message: fc.Arbitrary<ToCell> = fc.oneof(
  fc
    .record({
      executionKey: fc.string(),
      signal: fc.string(),
      tree: fc.boolean(),
      stop: fc.boolean(),
      reason: fc.string(),
    })
    .map((value) => body({ $case: 'signal', value })),
  fc
    .record({
      executionKey: fc.string(),
      data: fc.uint8Array({ maxLength: 5_000 }).map((bytes) => Buffer.from(bytes)),
      end: fc.boolean(),
    })
    .map((value) => body({ $case: 'input', value })),
  fc.constant(body({ $case: 'shutdown', value: {} })),
  // A frame of no bytes at all.
  fc.constant({ body: undefined }),
);

function body(value: NonNullable<ToCell['body']>): ToCell {
  return { body: value };
}

/** The bytes of messages as one side sends them. */
async function encode(messages: ToCell[]): Promise<Buffer> {
  const socket = new PassThrough();
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  const sender = new FramedSocket<ToCell, ToCell>(new PassThrough() as unknown as Socket, ToCell, ToCell);
  const target = new FramedSocket<ToCell, ToCell>(socket as unknown as Socket, ToCell, ToCell);
  for (const one of messages) target.send(one);
  sender.destroy();
  socket.end();
  await once(socket, 'end');
  return Buffer.concat(chunks);
}

/** What the other side makes of bytes that arrive in these chunks, and the reason of the end if it ended itself. */
async function decode(chunks: Buffer[]): Promise<{ messages: ToCell[]; failure: Error | undefined }> {
  const socket = new PassThrough({ highWaterMark: 0 });
  const receiver = new FramedSocket<ToCell, ToCell>(socket as unknown as Socket, ToCell, ToCell);
  const messages: ToCell[] = [];
  receiver.on('message', (one) => messages.push(one));
  const closed = once(receiver, 'close') as Promise<[Error | undefined]>;
  for (const chunk of chunks) {
    if (socket.destroyed) break;
    socket.emit('data', chunk);
  }
  socket.destroy();
  return { messages, failure: (await closed)[0] };
}

function cut(bytes: Buffer, at: number[]): Buffer[] {
  const places = [...new Set(at.map((place) => place % (bytes.length + 1)))].sort((a, b) => a - b);
  return [0, ...places].map((from, index) => bytes.subarray(from, places[index] ?? bytes.length));
}

test('messages arrive as they were sent, in whatever pieces', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(message, { maxLength: 12 }),
      fc.array(fc.nat(), { maxLength: 30 }),
      async (sent, places) => {
        const { messages, failure } = await decode(cut(await encode(sent), places));

        expect(failure).toBeUndefined();
        expect(messages).toEqual(sent);
      },
    ),
  );
});

test('byte by byte is as good as at once', async () => {
  const sent = [
    body({ $case: 'input', value: { executionKey: 'k', data: Buffer.alloc(300, 7), end: true } }),
    body({ $case: 'shutdown', value: {} }),
  ];

  const bytes = await encode(sent);

  expect((await decode([...bytes].map((byte) => Buffer.from([byte])))).messages).toEqual(sent);
});

test('an unfinished frame is no message and no failure', async () => {
  const bytes = await encode([body({ $case: 'kill', value: { executionKey: 'key', reason: 'cancelled' } })]);

  expect(await decode([bytes.subarray(0, bytes.length - 1)])).toEqual({ messages: [], failure: undefined });
});

test('garbage never throws: it ends the connection with a reason, or waits for more', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.uint8Array({ minLength: 1, maxLength: 200 }), { maxLength: 10 }), async (chunks) => {
      const { failure } = await decode(chunks.map((chunk) => Buffer.from(chunk)));

      if (failure !== undefined) expect(failure.message).toContain('no message');
    }),
  );
});

test('a frame longer than any message is refused before it is waited for', async () => {
  const { failure } = await decode([Buffer.from([0xff, 0xff, 0xff, 0xff])]);

  expect(failure).toBeInstanceOf(Error);
});

test('messages before the garbage have arrived, none after it', async () => {
  const good = await encode([body({ $case: 'kill', value: { executionKey: 'key', reason: 'cancelled' } })]);
  const bad = Buffer.concat([Buffer.from([0, 0, 0, 3]), Buffer.from([0x0a, 0x7f, 0x41])]);

  const { messages, failure } = await decode([good, bad, good]);

  expect(messages).toEqual([body({ $case: 'kill', value: { executionKey: 'key', reason: 'cancelled' } })]);
  expect(failure).toBeInstanceOf(Error);
});
