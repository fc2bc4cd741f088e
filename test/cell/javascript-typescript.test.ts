import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { Harness } from './javascript-harness.ts';

const shared = new Harness();
shared.engine.keepWarm(2);
afterAll(() => shared[Symbol.asyncDispose]());

test.each([
  ['and is nothing else', 'console.log(await Promise.resolve("awaited"))'],
  ['before it imports', 'const text = await Promise.resolve("awaited"); import { log } from "node:console"; log(text)'],
  [
    'below a line for the kernel',
    '#!/usr/bin/env node\nconsole.log(await Promise.resolve("awaited")); import "node:fs"',
  ],
])('a TypeScript program that awaits at its top level %s is a module', async (_, code) => {
  expect(await shared.run(code, { language: 'typescript' })).toMatchObject({ out: 'awaited\n', err: '', exitCode: 0 });
});

test('a TypeScript program may dispose of what it uses at its top level, whatever kind of program it is', async () => {
  const using = 'using held: Disposable = { [Symbol.dispose]: () => console.log("disposed", typeof require) };';

  const commonjs = await shared.run(using, { language: 'typescript' });
  const module = await shared.run(`${using} export {}`, { language: 'typescript' });

  expect(commonjs).toMatchObject({ out: 'disposed function\n', err: '', exitCode: 0 });
  expect(module).toMatchObject({ out: 'disposed undefined\n', err: '', exitCode: 0 });
});

test('TypeScript may use enums, namespaces, parameter properties and type imports', async () => {
  const code = `import type { Foo } from './nowhere.ts';
    enum Color { Red = 3 }
    namespace Space { export const size: number = 4 }
    interface Named { name: string }
    class Person implements Named { constructor(public name: string) {} }
    const foo: Foo | undefined = undefined;
    console.log(Color.Red, Color[3], Space.size, new Person('Ada').name, foo)`;

  const { out, err, exitCode } = await shared.run(code, { language: 'typescript' });

  expect({ out, err, exitCode }).toEqual({ out: '3 Red 4 Ada undefined\n', err: '', exitCode: 0 });
});

test('a TypeScript file that is imported may use enums', async () => {
  const mainPath = join(shared.root, 'levels.ts');
  writeFileSync(join(shared.root, 'level.ts'), 'export enum Level { Low, High }');

  const result = await shared.run('import { Level } from "./level.ts"; console.log(Level.High)', {
    language: 'typescript',
    mainPath,
  });

  expect(result).toMatchObject({ out: '1\n', err: '', exitCode: 0 });
});

test('an import that is only used as a type is none', async () => {
  writeFileSync(join(shared.root, 'shape.ts'), 'export interface Shape { size: number }');
  const code = 'import { Shape } from "./shape.ts"; const one: Shape = { size: 1 }; console.log(one.size)';

  const result = await shared.run(code, { language: 'typescript', mainPath: join(shared.root, 'shapes.ts') });

  expect(result).toMatchObject({ out: '1\n', err: '', exitCode: 0 });
});

test('an imported TypeScript file is what its extension says, else what the nearest package.json says', async () => {
  const directory = join(shared.root, 'kinds');
  mkdirSync(join(directory, 'package'), { recursive: true });
  writeFileSync(join(directory, 'package.json'), '{}');
  writeFileSync(join(directory, 'package/package.json'), '{"type":"module"}');
  const files = ['bare.ts', 'bare.mts', 'package/bare.ts', 'package/bare.cts'];
  for (const file of files) writeFileSync(join(directory, file), 'console.log(typeof require as string)');

  const { out, err } = await shared.run(files.map((file) => `require("./${file}");`).join('\n'), {
    mainPath: join(directory, 'main.js'),
  });

  expect({ out, err }).toEqual({ out: 'function\nundefined\nundefined\nfunction\n', err: '' });
});

test('TypeScript that does not parse fails with the place on stderr', async () => {
  const { exitCode, cause, err, events } = await shared.run('const a: number = ;', { language: 'typescript' });

  expect({ exitCode, cause, events }).toEqual({ exitCode: 1, cause: undefined, events: ['started', 'exited'] });
  expect(err).toContain('const a: number = ;');
  expect(err).toContain('main.ts');
});

test('stack traces of TypeScript name the lines the user wrote', async () => {
  const code = `interface A {
  a: string;
}

enum B { X }
try { throw new Error('caught') } catch (error) { console.log((error as Error).stack) }
function fail(b: B): never {
  throw new Error('uncaught ' + b)
}
fail(B.X)`;

  const { out, err } = await shared.run(code, { language: 'typescript' });

  expect(out).toMatch(/main\.ts:6:13/);
  expect(err).toMatch(/at fail \(.*main\.ts:8:9\)/);
  expect(err).toMatch(/main\.ts:10:1/);
  expect(err).toContain(`main.ts:8\n  throw new Error('uncaught ' + b)\n        ^`);
});

test('a JavaScript program has the lines of the TypeScript it imports', async () => {
  const mainPath = join(shared.root, 'caller.js');
  writeFileSync(
    join(shared.root, 'thrower.ts'),
    'interface A {\n  a: string;\n}\n\nexport function fail() { throw new Error("typed") }',
  );

  const { err } = await shared.run('require("./thrower.ts").fail()', { mainPath });

  expect(err).toMatch(/fail \(.*thrower\.ts:5:32\)/);
});
