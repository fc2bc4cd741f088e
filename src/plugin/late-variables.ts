import type { Snippet } from '../supervisor/requests.ts';

/** Variables that Node reads when it starts, which is before it knows whose it is. */
const READ_AT_START = [
  'NODE_OPTIONS',
  'NODE_PATH',
  'NODE_EXTRA_CA_CERTS',
  'NODE_NO_WARNINGS',
  'NODE_DEBUG',
  'NODE_USE_ENV_PROXY',
];

/** What is to be said of variables that are set too late to have an effect, for people. */
export function lateVariables({ language, isolation, env = {} }: Snippet): string[] {
  // A process heeds a change of it; a thread shares its cell's.
  const read = isolation === 'thread' ? [...READ_AT_START, 'TZ'] : READ_AT_START;
  const names = /^py/i.test(language) ? [] : read.filter((name) => name in env);
  if (names.length === 0) return [];
  return [
    `without effect, as Node has started when the task begins: ${names.join(', ')}; what the task starts has them`,
  ];
}
