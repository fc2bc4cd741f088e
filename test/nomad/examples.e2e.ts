import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { temporaryDirectory } from '../support/daemon.ts';
import { DaemonProcess } from '../support/daemon-process.ts';
import { Agent, type Allocation, until } from './agent.ts';
import { findNomad } from './build-nomad.ts';

const nomad = findNomad();

const EXAMPLES = join(import.meta.dirname, '../../examples/nomad');
/** Of the daemon in the examples' agent configuration. */
const SOCKET = '"/run/elide/daemon.sock"';
const LIMIT_MS = 90_000;

describe.skipIf(nomad === undefined)('examples', { timeout: LIMIT_MS }, () => {
  let daemon: DaemonProcess;
  let agent: Agent;

  beforeAll(async () => {
    daemon = await DaemonProcess.start();
    const directory = temporaryDirectory();
    const file = join(directory, 'agent.hcl');
    const configuration = readFileSync(join(EXAMPLES, 'agent.hcl'), 'utf8');
    expect(configuration).toContain(SOCKET);
    writeFileSync(file, configuration.replace(SOCKET, `"${daemon.socket}"`));
    agent = await Agent.start(nomad as string, join(directory, 'n'), { file });
  }, LIMIT_MS);
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
    await daemon.stop();
  }, LIMIT_MS);

  const cli = (...args: string[]) => promisify(execFile)(agent.nomad, args, { env: agent.env });
  const run = (name: string, ...flags: string[]) =>
    cli('job', 'run', '-detach', ...flags, join(EXAMPLES, `${name}.nomad.hcl`));
  const ended = ({ ClientStatus }: Allocation) => ClientStatus === 'complete' || ClientStatus === 'failed';

  test.each([
    ['hello-python', /^hello from Python 3\.\S+ in hello\n$/],
    ['hello-javascript', /^hello from JavaScript v\S+ in hello\n$/],
    ['hello-typescript', /^hello from TypeScript v\S+ in hello\n$/],
  ])('%s', async (name, printed) => {
    await run(name);

    const { ID, ClientStatus } = await agent.allocation(name, ended);

    expect(ClientStatus).toBe('complete');
    expect(await agent.logs(ID, 'stdout', 'hello')).toMatch(printed);
  });

  test('http-server: three servers, each healthy and found', async () => {
    const source = createServer((_request, response) => response.end(readFileSync(join(EXAMPLES, 'server.py'))));
    await once(source.listen(0, '127.0.0.1'), 'listening');
    const { port } = source.address() as AddressInfo;
    await run('http-server', `-var=source=http://127.0.0.1:${port}/server.py`);
    const services = () => agent.get<{ Address: string; Port: number; AllocID: string }[]>('/v1/service/http-server');
    await until('three are there', async () => (await services().catch(() => [])).length === 3);

    const found = await services();
    // The service is there with its allocation, a moment before the server listens.
    await until('each check passes', async () => {
      const checks = await Promise.all(
        found.map(({ AllocID }) =>
          agent.get<Record<string, { Status: string }>>(`/v1/client/allocation/${AllocID}/checks`),
        ),
      );
      return checks.every((one) => Object.values(one).some(({ Status }) => Status === 'success'));
    });
    const ask = async ({ Port }: { Port: number }) => {
      const response = await fetch(`http://127.0.0.1:${Port}/x`);
      return ((await response.json()) as { alloc: string }).alloc;
    };
    expect(new Set(await Promise.all(found.map(ask)))).toEqual(new Set(['0', '1', '2']));
    expect(await agent.logs(found[0]?.AllocID as string, 'stdout', 'server')).toMatch(
      /^INFO listening on 127\.0\.0\.1:\d+\n$/,
    );

    await cli('job', 'stop', '-detach', 'http-server');
    await agent.allocation('http-server', ended);
    source.close();
  });

  test('batch: 200 allocations', async () => {
    await run('batch');

    let all: Allocation[] = [];
    await until(
      'all have ended',
      async () => {
        all = await agent.allocations('batch');
        return all.length >= 200 && all.every(ended);
      },
      LIMIT_MS,
    );

    expect(all.filter(({ ClientStatus }) => ClientStatus !== 'complete')).toEqual([]);
  });

  test('graceful-stop: it has its time', async () => {
    await run('graceful-stop');
    const { ID } = await agent.running('graceful-stop');
    await until('it is ready', async () =>
      (await agent.logs(ID, 'stdout', 'service').catch(() => '')).includes('ready'),
    );

    await cli('job', 'stop', '-detach', 'graceful-stop');
    await agent.allocation('graceful-stop', ended);

    expect(await agent.logs(ID, 'stdout', 'service')).toBe('ready\nsaving\nsaved\n');
  });

  test('periodic: it comes again', async () => {
    await run('periodic');

    const children = () => agent.get<{ ID: string }[]>('/v1/jobs?prefix=periodic/');
    await until('two have run', async () => (await children()).length >= 2);
    await cli('job', 'stop', '-detach', '-purge', 'periodic');
    const [first] = await children();
    const { ID } = await agent.allocation(encodeURIComponent(first?.ID ?? ''), ended);

    expect(await agent.logs(ID, 'stdout', 'tick')).toMatch(/^tick \d+\n$/);
  });

  test('parameterized: it has its payload', async () => {
    await run('parameterized');
    const body = { Payload: Buffer.from('{"items":[1,2,3]}').toString('base64'), Meta: { name: 'World' } };

    const { DispatchedJobID } = await agent.put<{ DispatchedJobID: string }>('/v1/job/parameterized/dispatch', body);

    const { ID } = await agent.allocation(encodeURIComponent(DispatchedJobID), ended);
    expect(await agent.logs(ID, 'stdout', 'work')).toBe('hello World 3\n');
  });
});
