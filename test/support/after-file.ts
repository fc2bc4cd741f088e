import { afterAll } from 'vitest';
import { disposeOfLeftovers } from './leftovers.ts';

afterAll(disposeOfLeftovers);
