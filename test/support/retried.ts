import type { Reporter, TestCase } from 'vitest/node';

/** Says at the end why tests failed that then passed: a test that needs its second run has a cause. */
export default class Retried implements Reporter {
  readonly #found: TestCase[] = [];

  onTestCaseResult(test: TestCase): void {
    if (test.diagnostic()?.flaky) this.#found.push(test);
  }

  onTestRunEnd(): void {
    for (const test of this.#found) {
      console.log(`\nfailed at first: ${test.module.relativeModuleId} > ${test.fullName}`);
      for (const { stack, message } of test.result().errors ?? []) console.log(stack ?? message);
    }
  }
}
