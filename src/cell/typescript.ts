export { type Transformed, transformTypeScript } from '../../workers/javascript/transform.ts';
