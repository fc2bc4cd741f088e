import { InvalidArgumentError } from 'commander';
import { durationMs, sizeBytes } from '../quantities.ts';

const MIB = 2 ** 20;

/** A duration as Go writes it (`1500ms`, `5s`, `1m30s`), in whole ms. */
export function parseDuration(text: string): number {
  const ms = durationMs(text);
  if (ms === undefined) throw new InvalidArgumentError('A duration is for example 1500ms, 5s or 1m30s.');
  return ms;
}

/** A size in MiB, or with a unit (`64MiB`, `1GB`), in whole MiB. */
export function parseSize(text: string): number {
  return Math.floor(parseBytes(text) / MIB);
}

/** A size in MiB, or with a unit (`100kB`, `64MiB`), in whole bytes. */
export function parseBytes(text: string): number {
  const bytes = sizeBytes(text);
  if (bytes === undefined) throw new InvalidArgumentError('A size is for example 128 (MiB), 100kB or 1GiB.');
  return bytes;
}

/** A whole number. */
export function parseCount(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError('It must be a whole number.');
  return Number(text);
}

/** Adds `K=V`, or `K` with the value it has here, to the environment collected so far. */
export function collectEnv(text: string, env: Record<string, string> = {}): Record<string, string> {
  const at = text.indexOf('=');
  const name = at < 0 ? text : text.slice(0, at);
  const value = at < 0 ? process.env[name] : text.slice(at + 1);
  if (name === '') throw new InvalidArgumentError('It must be NAME=VALUE, or NAME for the value it has here.');
  // Objects of JavaScript have no room for it.
  if (name === '__proto__') throw new InvalidArgumentError('No variable of that name can be passed on.');
  return value === undefined ? env : { ...env, [name]: value };
}

/** Adds one more word to a list collected so far. */
export function collect(text: string, list: string[] = []): string[] {
  return [...list, text];
}

/** A size for people: `512 B`, `3.4 MiB`. */
export function formatBytes(bytes: number): string {
  const units = ['KiB', 'MiB', 'GiB', 'TiB'];
  if (bytes < 1024) return `${bytes} B`;
  const power = Math.min(units.length, Math.floor(Math.log2(bytes) / 10));
  return `${(bytes / 1024 ** power).toFixed(1)} ${units[power - 1]}`;
}

/** A duration for people: `850ms`, `3.2s`, `4m05s`, `2h03m`. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)}ms`;
  if (ms < 60_000) return `${(Math.floor(ms / 100) / 10).toFixed(1)}s`;
  const [long, short, unit, subunit] = ms < 3_600_000 ? [60_000, 1000, 'm', 's'] : [3_600_000, 60_000, 'h', 'm'];
  return `${Math.floor(ms / long)}${unit}${String(Math.floor((ms % long) / short)).padStart(2, '0')}${subunit}`;
}
