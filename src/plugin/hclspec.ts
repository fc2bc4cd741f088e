import { decode } from '@msgpack/msgpack';
import * as v from 'valibot';
import { InvalidArgumentError } from '../errors.ts';
import { Spec } from '../gen/nomad/hclspec.ts';
import { durationMs, sizeBytes } from '../quantities.ts';

/** One word of a configuration: what the agent is to take it for, and what the driver makes of what comes. */
interface Field<S extends v.GenericSchema> {
  /** Names are said again inside: there are places where they are not inherited. */
  spec(name: string): Spec;
  schema: S;
}
type Fields = Record<string, Field<v.GenericSchema>>;
type Schema<F extends Fields> = v.ObjectSchema<{ [K in keyof F]: F[K]['schema'] }, undefined>;

/** A whole configuration: what the agent is told of it, and what is made of the bytes that come. */
export interface Configuration<T> {
  spec: Spec;
  /** Throws an `InvalidArgumentError` that names the field. */
  decode(msgpack: Uint8Array): T;
  /** A field that is wrong counts as not said; `wrong` says why, for people. Throws for bytes that nobody wrote. */
  decodeRest(msgpack: Uint8Array): { config: T; wrong: string | undefined };
}

/** What the agent sends as null where there is nothing. */
const optional = <S extends v.GenericSchema>(schema: S) => v.nullish(schema, () => undefined);

/** An attribute of an HCL type, for example `list(string)`. */
export function attr<S extends v.GenericSchema>(type: string, schema: S) {
  const spec = (name: string) => Spec.fromPartial({ block: { $case: 'attr', value: { name, type, required: false } } });
  return { spec, schema: optional(schema) };
}

export const text = attr('string', v.string());
export const flag = attr('bool', v.boolean());
export const list = attr('list(string)', v.array(v.string()));
/** One of these. */
export const word = <const W extends string[]>(...words: W) => attr('string', v.picklist(words));
/** 0 to `most`. The agent sends decimals as text. */
export const countTo = (most: number) =>
  attr(
    'number',
    v.pipe(v.union([v.number(), v.string()]), v.transform(Number), v.integer(), v.minValue(0), v.maxValue(most)),
  );
export const count = countTo(Number.MAX_SAFE_INTEGER);
/** In ms; seconds where the user says no unit. */
export const duration = attr(
  'string',
  v.pipe(
    v.string(),
    v.transform((value) => durationMs(/^[\d.]+$/.test(value) ? `${value}s` : value)),
    v.number('it must be a duration, for example 30s, 1500ms or 1m30s'),
  ),
);
const SIZE = 'it must be a size, for example 512 (MiB), 100kB or 1GiB';
const sized = (bytes: number) => (bytes % 2 ** 20 === 0 ? `${bytes / 2 ** 20} MiB` : `${bytes} bytes`);
/** In bytes, 0 or at least `least`, at most `most`; MiB where the user says no unit. */
export const sizeOf = (least: number, most: number) =>
  attr(
    'string',
    v.pipe(
      v.string(),
      v.transform(sizeBytes),
      v.number(SIZE),
      v.check(
        (bytes) => bytes === 0 || (bytes >= least && bytes <= most),
        `it must be ${sized(least)} to ${sized(most)}`,
      ),
    ),
  );
export const size = sizeOf(0, Number.MAX_SAFE_INTEGER);

/** Strings by names of the user's own, as a block. */
export const strings = {
  spec: (name: string) => Spec.fromPartial({ block: { $case: 'blockAttrs', value: { name, type: 'string' } } }),
  schema: optional(v.record(v.string(), v.string())),
};

export function block<F extends Fields>(fields: F) {
  const { spec: nested, schema } = object(fields);
  const spec = (name: string) => Spec.fromPartial({ block: { $case: 'blockValue', value: { name, nested } } });
  return { spec, schema: optional(schema) };
}

export function configuration<F extends Fields>(fields: F): Configuration<v.InferOutput<Schema<F>>> {
  const { spec, schema } = object(fields);
  const parse = (input: unknown): v.InferOutput<Schema<F>> => {
    const parsed = v.safeParse(schema, input);
    if (parsed.success) return parsed.output;
    throw new InvalidArgumentError(wrongIn(parsed.issues[0]));
  };
  const decodeRest = (bytes: Uint8Array) => {
    const input = unpacked(bytes);
    const { issues = [] } = v.safeParse(schema, input);
    for (const { path } of issues) {
      const field = path?.at(-1);
      if (field !== undefined) delete (field.input as Record<PropertyKey, unknown>)[field.key as PropertyKey];
    }
    return { config: parse(input), wrong: issues.length === 0 ? undefined : issues.map(wrongIn).join('; ') };
  };
  return { spec, decode: (bytes) => parse(unpacked(bytes)), decodeRest };
}

function wrongIn(issue: v.BaseIssue<unknown>): string {
  return `failed to decode driver config: ${v.getDotPath(issue) ?? ''}: ${issue.message}`;
}

function object<F extends Fields>(fields: F) {
  const attributes = Object.fromEntries(Object.entries(fields).map(([name, { spec }]) => [name, spec(name)]));
  const schemas = Object.fromEntries(Object.entries(fields).map(([name, { schema }]) => [name, schema]));
  const spec = Spec.fromPartial({ block: { $case: 'object', value: { attributes } } });
  return { spec, schema: v.object(schemas) as unknown as Schema<F> };
}

function unpacked(bytes: Uint8Array): unknown {
  try {
    return bytes.byteLength === 0 ? {} : decode(bytes);
  } catch (error) {
    throw new InvalidArgumentError(`failed to decode driver config: ${(error as Error).message}`, { cause: error });
  }
}
