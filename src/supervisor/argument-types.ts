import { InvalidArgumentError } from '../errors.ts';
import type { OutputFiles, SessionConfiguration, Snippet } from './requests.ts';

// Callers in plain JavaScript can hand in anything. What is not of its type is found here, and not by the journal, which
// would try for ever to write it.

/** So many arguments, variables and the like there may be: the daemon looks at each in turn, and at nothing else meanwhile. */
const MOST_ENTRIES = 100_000;
const MOST_INTRINSICS = 1_000;
const LONGEST_INTRINSIC_BYTES = 1_024;

/** Text that is the same after it has been written down as UTF-8. */
export function checkText(value: unknown, field: string): void {
  if (typeof value !== 'string') throw new InvalidArgumentError(`${field} is ${kindOf(value)}; it must be text`);
  if (!value.isWellFormed()) throw new InvalidArgumentError(`${field} has half a character (a lone surrogate)`);
}

export function checkEntries(count: number, field: string): void {
  if (count <= MOST_ENTRIES) return;
  throw new InvalidArgumentError(`${field} has more than ${MOST_ENTRIES} entries, which are all that are allowed`);
}

/** Objects of JavaScript have no room for a variable of that name: it would be lost on its way, without a word. */
export function checkVariable(name: string): void {
  if (name === '__proto__') throw new InvalidArgumentError('env: no variable of the name __proto__ can be passed on');
}

function checkFlag(value: unknown, field: string): void {
  if (value === undefined || typeof value === 'boolean') return;
  throw new InvalidArgumentError(`${field} is ${kindOf(value)}; it must be true or false`);
}

function checkTexts(value: unknown, field: string): void {
  if (value === undefined) return;
  if (!Array.isArray(value)) throw new InvalidArgumentError(`${field} is ${kindOf(value)}; it must be a list of texts`);
  checkEntries(value.length, field);
  for (const [index, text] of value.entries()) checkText(text, `${field}[${index}]`);
}

function checkObject(value: unknown, field: string): void {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return;
  throw new InvalidArgumentError(`${field} is ${kindOf(value)}; it must be an object`);
}

/** Throws unless every field is of its type; what its value may be is for others to say. */
export function checkSnippetTypes(snippet: Snippet): void {
  const { env, outputFiles } = snippet;
  checkText(snippet.sessionId, 'session_id');
  checkText(snippet.executionId, 'execution_id');
  checkText(snippet.code, 'code');
  checkText(snippet.language, 'language');
  checkTexts(snippet.args, 'args');
  if (env !== undefined) checkObject(env, 'env');
  const variables = Object.entries(env ?? {});
  checkEntries(variables.length, 'env');
  for (const [name, value] of variables) {
    checkText(name, 'the name of a variable in env');
    checkVariable(name);
    checkText(value, `env ${name}`);
  }
  const { workingDirectory, sourceFileName, timeoutSignal } = snippet;
  for (const [field, value] of Object.entries({ workingDirectory, sourceFileName, timeoutSignal })) {
    if (value !== undefined) checkText(value, `config.${wireName(field)}`);
  }
  const { stdin, ahead, signalTree, requireEnforcement } = snippet;
  checkFlag(ahead, 'ahead');
  for (const [field, value] of Object.entries({ stdin, signalTree, requireEnforcement })) {
    checkFlag(value, `config.${wireName(field)}`);
  }
  if (outputFiles !== undefined) checkOutputFileTypes(outputFiles);
}

function checkOutputFileTypes(outputFiles: OutputFiles): void {
  checkObject(outputFiles, 'config.output_files');
  checkText(outputFiles.stdout, 'config.output_files.stdout');
  checkText(outputFiles.stderr, 'config.output_files.stderr');
}

/** The same of a session's. */
export function checkSessionTypes(config: SessionConfiguration): void {
  checkObject(config, 'config');
  checkTexts(config.enabledLanguages, 'config.enabled_languages');
  checkTexts(config.enabledIntrinsics, 'config.enabled_intrinsics');
  checkFlag(config.enableAi, 'config.enable_ai');
  const { executionDefaults: defaults, executionCeilings: ceilings, enabledIntrinsics = [] } = config;
  if (defaults !== undefined) checkObject(defaults, 'config.execution_defaults');
  if (ceilings !== undefined) checkObject(ceilings, 'config.execution_ceilings');
  checkFlag(defaults?.signalTree, 'config.execution_defaults.signal_tree');
  checkFlag(defaults?.requireEnforcement, 'config.execution_defaults.require_enforcement');
  if (defaults?.timeoutSignal !== undefined) {
    checkText(defaults.timeoutSignal, 'config.execution_defaults.timeout_signal');
  }
  if (enabledIntrinsics.length > MOST_INTRINSICS) {
    const count = enabledIntrinsics.length;
    throw new InvalidArgumentError(
      `config.enabled_intrinsics has ${count} names; at most ${MOST_INTRINSICS} are allowed`,
    );
  }
  for (const [index, name] of enabledIntrinsics.entries()) {
    const bytes = Buffer.byteLength(name);
    if (bytes <= LONGEST_INTRINSIC_BYTES) continue;
    throw new InvalidArgumentError(
      `config.enabled_intrinsics[${index}] has ${bytes} bytes; at most ${LONGEST_INTRINSIC_BYTES} are allowed`,
    );
  }
}

/** A field's name on the wire: `working_directory` for `workingDirectory`. */
function wireName(field: string): string {
  return field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function kindOf(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'a list';
  return typeof value === 'object' ? 'an object' : `${String(value)} (${typeof value})`;
}
