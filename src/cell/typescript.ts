export { type Transformed, transformTypeScript } from '../../workers/javascript/source.ts';
