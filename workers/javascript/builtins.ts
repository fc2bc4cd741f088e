import type * as ChildProcessModule from 'node:child_process';
import type * as NetModule from 'node:net';
import { replaceChildFunctions } from './children.ts';
import { replaceDatabase, replaceHeapSnapshot, replaceSocketPaths, replaceWasi } from './places.ts';
import { define, program, standIn } from './program.ts';

const getBuiltinModule = process.getBuiltinModule;
const done = new Set<() => void>();

const children = () => replaceChildFunctions(getBuiltinModule('node:child_process') as typeof ChildProcessModule);
const sockets = () => replaceSocketPaths(getBuiltinModule('node:net') as typeof NetModule);
const database = () => replaceDatabase(getBuiltinModule('node:sqlite') as unknown as Record<string, unknown>);
const wasi = () => replaceWasi(getBuiltinModule('node:wasi') as unknown as Record<string, unknown>);
const snapshots = () => replaceHeapSnapshot(getBuiltinModule('node:v8'));

type Replacements = Record<string, (() => void)[]>;

/** By each module of Node that a program may name: what has to be replaced before it gets it. */
const REPLACEMENTS: Replacements = {
  child_process: [children],
  cluster: [children, sockets],
  net: [sockets],
  http: [sockets],
  https: [sockets],
  http2: [sockets],
  tls: [sockets],
  _http_agent: [sockets],
  _http_client: [sockets],
  _http_server: [sockets],
  _tls_wrap: [sockets],
  repl: [sockets],
  inspector: [sockets],
  sqlite: [database],
  v8: [snapshots],
  wasi: [wasi],
};

/** Of them, what has to be replaced for a program that has its process to itself. */
const OWN_PROCESS_REPLACEMENTS: Replacements = { child_process: [children], cluster: [children], sqlite: [teardown] };

/** Replaces nothing: databases are closed with all else that Node frees. */
function teardown(): void {
  program.needsTeardown = true;
}

/**
 * Called with each module of Node a program asks for, before it gets it. What few programs use is loaded and replaced
 * only then: in every spare thread it would cost memory and time to boot.
 */
export function prepareBuiltin(name: string): void {
  const all = program.ownsProcess ? OWN_PROCESS_REPLACEMENTS : REPLACEMENTS;
  const replacements = all[name.startsWith('node:') ? name.slice(5) : name];
  if (replacements === undefined) return;
  for (const replacement of replacements) {
    if (done.has(replacement)) continue;
    done.add(replacement);
    replacement();
  }
}

/** `process.getBuiltinModule` passes by the module hooks. */
export function replaceGetBuiltin(): void {
  define(
    process,
    'getBuiltinModule',
    standIn(getBuiltinModule as (name: string) => unknown, (name) => {
      if (typeof name === 'string') prepareBuiltin(name);
      return getBuiltinModule.call(process, name);
    }),
  );
}
