// One row in the side panel. Everything is printed as text: a row that holds HTML or Markdown
// shows it and runs nothing.
import { useEffect, useRef } from 'react';
import { useSetRecoilState } from 'recoil';
import { sideViewState } from '@chainlit/react-client';

export default function SourceCard() {
  const { n, title, relevance, segments, columns, table, version, row } = props;
  const setSideView = useSetRecoilState(sideViewState);
  const panel = useRef(null);

  // keyboard and screen reader follow the click into the panel
  useEffect(() => panel.current?.focus({ preventScroll: true }), []);

  return (
    <article
      ref={panel}
      tabIndex={-1}
      className="rag-panel"
      data-testid="source"
      aria-label={`Source ${n}: ${title}`}
      onKeyDown={(event) => event.key === 'Escape' && setSideView(undefined)}
    >
      <header>
        <h2>{title}</h2>
        <div className="rag-relevance">
          <span className="rag-bar">
            <span style={{ width: `${100 * relevance}%` }} />
          </span>
          <span>relevance {relevance.toFixed(2)}</span>
        </div>
      </header>
      <blockquote className="rag-passage" data-testid="passage">
        {segments.map((segment, i) =>
          segment.is_cited ? (
            <mark key={i}>{segment.text}</mark>
          ) : (
            <span key={i}>{segment.text}</span>
          )
        )}
      </blockquote>
      <table className="rag-columns" data-testid="columns">
        <tbody>
          {columns.map(([name, value]) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td>{value === null ? <span className="rag-none">empty</span> : value}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <footer className="rag-origin" data-testid="origin">
        {table} · version {version} · row {row}
      </footer>
    </article>
  );
}
