// The cards under an answer. A click on one, or on a chip `[n](#cite-n)` in the text above,
// opens that one row in the side panel (SourceCard.jsx). `kind` says what the rows are.
import { useEffect } from 'react';
import { useSetRecoilState } from 'recoil';
import { sideViewState } from '@chainlit/react-client';

const HEADINGS = { sources: 'Sources', nearest: 'Nearest rows', hits: 'Rows found', row: 'Row' };

export default function Sources() {
  const { message_id: messageId, is_done: isDone, kind = 'sources', sources = [] } = props;
  const setSideView = useSetRecoilState(sideViewState);
  const heading = isDone || kind !== 'sources' ? HEADINGS[kind] : 'Reading';
  const isCitable = kind === 'sources';
  const noun = isCitable ? 'source' : 'row';

  const open = (source, opener) => {
    // the panel gives the focus back to it (SourceCard.jsx)
    document.querySelector('[data-rag-opener]')?.removeAttribute('data-rag-opener');
    opener.setAttribute('data-rag-opener', '');
    setSideView({
      title: isCitable ? `Source ${source.n}` : 'Row',
      elements: [
        {
          // another id for other spans, so that an open panel shows the new ones
          id: `${messageId}-${source.n}-${source.segments.length}`,
          type: 'custom',
          name: 'SourceCard',
          display: 'side',
          props: { ...source, is_citable: isCitable }
        }
      ]
    });
  };

  useEffect(() => {
    const message = document.getElementById(`step-${messageId}`);
    const onClick = (event) => {
      const chip = event.target.closest('a[href^="#cite-"]');
      if (!chip) return;
      event.preventDefault();
      const n = Number(chip.getAttribute('href').slice('#cite-'.length));
      const source = sources.find((s) => s.n === n);
      if (source) open(source, chip);
    };
    message?.addEventListener('click', onClick);
    return () => message?.removeEventListener('click', onClick);
  }, [messageId, sources]);

  const said = ({ n, title, relevance, is_cited: isCited }) =>
    `Open ${noun} ${n}: ${title}.` +
    (relevance === null ? '' : ` Relevance ${relevance.toFixed(2)}${isCited ? ', cited' : ''}`);

  return (
    <section
      className="rag-sources"
      aria-label={heading}
      data-rag-kind={kind}
      data-testid="sources"
      hidden={sources.length === 0}
    >
      <div className="rag-heading">{heading}</div>
      <ul className="rag-cards">
        {sources.map((source) => (
          <li key={source.n}>
            <button
              type="button"
              className="rag-card"
              data-testid={`card-${source.n}`}
              data-cited={source.is_cited}
              aria-label={said(source)}
              onClick={(event) => open(source, event.currentTarget)}
            >
              <span className="rag-card-top">
                <span className="rag-number">{source.n}</span>
                <span className="rag-card-title" title={source.title}>
                  {source.title}
                </span>
                {source.is_cited ? <span className="rag-check">✓ cited</span> : null}
              </span>
              {source.relevance === null ? null : (
                <span className="rag-relevance">
                  <span className="rag-bar">
                    <span style={{ width: `${100 * source.relevance}%` }} />
                  </span>
                  <span>{source.relevance.toFixed(2)}</span>
                </span>
              )}
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}
