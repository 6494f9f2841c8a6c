// The cards under an answer. A click on one, or on a chip `[n](#cite-n)` in the text above,
// opens that one row in the side panel (SourceCard.jsx).
import { useEffect } from 'react';
import { useSetRecoilState } from 'recoil';
import { sideViewState } from '@chainlit/react-client';

export default function Sources() {
  const { message_id: messageId, is_done: isDone, sources } = props;
  const setSideView = useSetRecoilState(sideViewState);

  const open = (source) =>
    setSideView({
      title: `Source ${source.n}`,
      elements: [
        {
          // another id for other spans, so that an open panel shows the new ones
          id: `${messageId}-${source.n}-${source.segments.length}`,
          type: 'custom',
          name: 'SourceCard',
          display: 'side',
          props: source
        }
      ]
    });

  useEffect(() => {
    const message = document.getElementById(`step-${messageId}`);
    const onClick = (event) => {
      const chip = event.target.closest('a[href^="#cite-"]');
      if (!chip) return;
      event.preventDefault();
      const n = Number(chip.getAttribute('href').slice('#cite-'.length));
      const source = sources.find((s) => s.n === n);
      if (source) open(source);
    };
    message?.addEventListener('click', onClick);
    return () => message?.removeEventListener('click', onClick);
  }, [messageId, sources]);

  return (
    <section aria-label={isDone ? 'Sources' : 'Reading'} data-testid="sources">
      <div className="rag-heading">{isDone ? 'Sources' : 'Reading'}</div>
      <ul className="rag-cards">
        {sources.map((source) => (
          <li key={source.n}>
            <button
              type="button"
              className="rag-card"
              data-testid={`card-${source.n}`}
              data-cited={source.is_cited}
              aria-label={
                `Open source ${source.n}: ${source.title}. Relevance ` +
                `${source.relevance.toFixed(2)}${source.is_cited ? ', cited' : ''}`
              }
              onClick={() => open(source)}
            >
              <span className="rag-card-top">
                <span className="rag-number">{source.n}</span>
                <span className="rag-card-title" title={source.title}>
                  {source.title}
                </span>
                {source.is_cited ? <span className="rag-check">✓ cited</span> : null}
              </span>
              <span className="rag-relevance">
                <span className="rag-bar">
                  <span style={{ width: `${100 * source.relevance}%` }} />
                </span>
                <span>{source.relevance.toFixed(2)}</span>
              </span>
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}
